package eventbus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// TCP says where plugins connect that are known by a key. Nobody else is let in
// there.
type TCP struct {
	Listen      string `toml:"listen"`      // address and port; empty is nowhere
	Certificate string `toml:"certificate"` // file, PEM; with it there is TLS, and only TLS
	Key         string `toml:"key"`         // of the certificate
}

// tcpConnections is how many there are at once, those included that have not
// said who they are.
const tcpConnections = 256

func (t TCP) check() error {
	if t == (TCP{}) {
		return nil
	}
	var errs []error
	address, err := netip.ParseAddrPort(t.Listen)
	if err != nil {
		errs = append(errs, fmt.Errorf("tcp.listen: %q is not an address and port, like 127.0.0.1:4222", t.Listen))
	}
	if (t.Certificate == "") != (t.Key == "") {
		errs = append(errs, errors.New("tcp: certificate and key go together"))
	}
	if err == nil && t.Certificate == "" && !address.Addr().IsLoopback() {
		errs = append(errs, fmt.Errorf("tcp.certificate: %s is not loopback, and what is said there is to be read by nobody else", address.Addr()))
	}
	for name, path := range map[string]string{"certificate": t.Certificate, "key": t.Key} {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("tcp.%s: %q is not an absolute path", name, path))
		}
	}
	return errors.Join(errs...)
}

// ServeTCP serves NATS to plugins that have a key until ctx ends. It is a work of
// the daemon, beside ServeNATS; it closes lis. The server itself listens nowhere.
func (b *Bus) ServeTCP(ctx context.Context, lis net.Listener) error {
	// Who comes first could take the place of the bus in its account.
	select {
	case <-b.carried:
	case <-ctx.Done():
		lis.Close()
		return ctx.Err()
	}
	var secure *tls.Config
	if b.cfg.TCP.Certificate != "" {
		secure = &tls.Config{GetCertificate: b.cfg.TCP.certificate, MinVersion: tls.VersionTLS13}
		if _, err := secure.GetCertificate(nil); err != nil {
			b.log.Error("nobody can connect by TCP until there is a certificate", "err", err)
		}
	}
	free := make(chan struct{}, tcpConnections)
	return b.accept(ctx, lis, func(c net.Conn) (func(context.Context), error) {
		select {
		case free <- struct{}{}:
		default:
			return nil, fmt.Errorf("%d connections by TCP: %w", tcpConnections, errdefs.ErrResourceExhausted)
		}
		return func(ctx context.Context) {
			defer func() { <-free }()
			b.serveTCP(ctx, c, secure)
		}, nil
	})
}

// certificate reads the files each time: they are renewed under us.
func (t TCP) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
	return &pair, err
}

// serveTCP hands a connection to the server, which finds out who it is.
func (b *Bus) serveTCP(ctx context.Context, outer net.Conn, secure *tls.Config) {
	inner, err := b.server.InProcessConn()
	if err != nil {
		return // it is closing
	}
	says := bufio.NewReaderSize(inner, greetingMax)
	if secure != nil {
		raw := outer
		if outer, err = upgrade(ctx, raw, says, secure); err != nil {
			b.log.Debug("a peer did not agree on TLS", "peer", raw.RemoteAddr(), "err", err)
			inner.Close()
			return
		}
	}
	b.log.Debug("connected by TCP", "peer", outer.RemoteAddr())
	splice(ctx, outer, inner, says, func() (io.Reader, error) { return outer, nil })
}

// upgrade tells the peer in the server's first line that it has to use TLS, and
// waits until it does.
func upgrade(ctx context.Context, outer net.Conn, says *bufio.Reader, secure *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	if err := outer.SetDeadline(time.Now().Add(greetingTime)); err != nil {
		return nil, err
	}
	line, err := says.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	_, args, _ := bytes.Cut(line, []byte(" "))
	var info map[string]json.RawMessage
	if err := json.Unmarshal(args, &info); err != nil {
		return nil, err
	}
	info["tls_required"] = json.RawMessage("true")
	told, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(outer, "INFO %s\r\n", told); err != nil {
		return nil, err
	}
	c := tls.Server(outer, secure)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, outer.SetDeadline(time.Time{})
}
