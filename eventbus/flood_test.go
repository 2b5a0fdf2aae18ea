package eventbus

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// A plugin that asks as fast as it can leaves nothing behind in the server, and
// another is answered meanwhile.
func TestAFloodOfReadsIsForgotten(t *testing.T) {
	socket, b := openWith(t, twoPlugins(t), func(*Bus) {})
	c, err := peerDialer{socket, uidNet}.Dial("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go func() {
		w := bufio.NewWriter(c)
		fmt.Fprint(w, "CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB _INBOX.> 1\r\n")
		for i := range 50_000 {
			fmt.Fprintf(w, "PUB gantry.bus.v1.read _INBOX.%d 2\r\n{}\r\n", i)
		}
		fmt.Fprint(w, "PING\r\n")
		w.Flush()
	}()
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
		if strings.HasPrefix(line, "PONG") {
			break
		}
	}
	pending := 0
	for _, own := range b.roles.byName {
		pending += own.in.NumPendingAllResponses()
	}
	if pending > 0 {
		t.Errorf("%d answers are waited for", pending)
	}
}
