// Package websocket stands where the MQTT libraries import a websocket library
// that no program here ever uses: terminals speak MQTT over TLS and nothing
// else. What it would bring to a terminal (HTTP upgrade, compression, name
// tables) is a third of a MiB. Every call fails.
package websocket

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// BinaryMessage is the type of a binary message (RFC 6455 §11.8).
const BinaryMessage = 2

var errLeftOut = errors.New("websockets are left out of this program: use a tls:// or tcp:// address")

// Conn is a connection that never comes about.
type Conn struct{ net.Conn }

// NextReader fails.
func (*Conn) NextReader() (int, io.Reader, error) { return 0, nil, errLeftOut }

// WriteMessage fails.
func (*Conn) WriteMessage(int, []byte) error { return errLeftOut }

// UnderlyingConn is what Conn wraps.
func (c *Conn) UnderlyingConn() net.Conn { return c.Conn }

// Dialer has the fields that the MQTT client sets.
type Dialer struct {
	Proxy                           func(*http.Request) (*url.URL, error)
	HandshakeTimeout                time.Duration
	EnableCompression               bool
	TLSClientConfig                 *tls.Config
	Subprotocols                    []string
	ReadBufferSize, WriteBufferSize int
}

// Dial fails.
func (*Dialer) Dial(string, http.Header) (*Conn, *http.Response, error) { return nil, nil, errLeftOut }

// Upgrader has the fields that the MQTT server sets.
type Upgrader struct {
	Subprotocols []string
	CheckOrigin  func(*http.Request) bool
}

// Upgrade fails.
func (*Upgrader) Upgrade(http.ResponseWriter, *http.Request, http.Header) (*Conn, error) {
	return nil, errLeftOut
}
