package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// netTime is how long the other end may take.
const netTime = 10 * time.Second

// web answers every request for a page on a port, 80 unless it is given
// another, with a line that says who it is and who asked.
func web(s streams, args []string) int {
	port := "80"
	if len(args) > 0 {
		port = args[0]
	}
	lis, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return fail(s, "web", err)
	}
	host, _ := os.Hostname()
	for {
		c, err := lis.Accept()
		if err != nil {
			return fail(s, "web", err)
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(netTime))
			// A client that is answered before it has asked does not listen.
			for r := bufio.NewReader(io.LimitReader(c, 64<<10)); ; {
				line, err := r.ReadString('\n')
				if err != nil || strings.TrimSpace(line) == "" {
					break
				}
			}
			asker, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nHello from container %s to %s.\n", host, asker)
		}()
	}
}

// get prints the page that HOST[:PORT] answers with.
func get(s streams, args []string) int {
	if len(args) != 1 {
		return fail(s, "get", fmt.Errorf("want HOST[:PORT]"))
	}
	address := args[0]
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "80")
	}
	c, err := net.DialTimeout("tcp", address, netTime)
	if err != nil {
		return fail(s, "get", err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(netTime))
	fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return fail(s, "get", err)
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	if _, err := io.Copy(s.out, r); err != nil {
		return fail(s, "get", err)
	}
	return 0
}
