package agent

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/kagimori/kagimori/transport"
)

// peer is the management server's end of the MQTT wire, as little of MQTT 3.1.1
// as the terminal speaks, over real TLS: what it receives goes to server.
type peer struct {
	t       testing.TB
	server  *server
	address string

	mu          sync.Mutex
	conns       map[net.Conn]bool
	refuse      byte // CONNACK's code; 0: accept
	connections int
	enrollments int
	push        chan []byte // payloads to the connected terminal
}

func newPeer(t testing.TB, s *server, certificate tls.Certificate) *peer {
	t.Helper()
	p := &peer{t: t, server: s, conns: map[net.Conn]bool{}, push: make(chan []byte, 16)}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.address = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[c] = true
			p.mu.Unlock()
			wg.Go(func() { p.serve(c.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() { ln.Close(); p.drop(); wg.Wait() })
	return p
}

// drop breaks every connection.
func (p *peer) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *peer) count() (connections, enrollments int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections, p.enrollments
}

func (p *peer) refusing(code byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = code
}

// link is one connection.
type peerConn struct {
	*peer
	c      *tls.Conn
	mu     sync.Mutex // for writing
	down   string
	enroll *enrolling
}

func (p *peer) serve(c *tls.Conn) {
	defer func() {
		c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	l := &peerConn{peer: p, c: c}
	done := make(chan struct{})
	defer close(done)
	r := bufio.NewReader(c)
	for {
		header, body, err := readPacket(r)
		if err != nil || !l.packet(header, body, done) {
			return
		}
	}
}

func readPacket(r *bufio.Reader) (header byte, body []byte, err error) {
	if header, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r) // the same encoding as MQTT's, for these lengths
	if err != nil || n > 2*transport.MaxEnvelope {
		return 0, nil, io.ErrUnexpectedEOF
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return header, body, err
}

func (l *peerConn) write(header byte, body ...byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	packet := append(binary.AppendUvarint([]byte{header}, uint64(len(body))), body...)
	l.c.Write(packet)
}

func (l *peerConn) publish(payload []byte) {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(l.down)))
	l.write(0x30, append(append(body, l.down...), payload...)...)
}

func (l *peerConn) packet(header byte, body []byte, done chan struct{}) bool {
	switch header >> 4 {
	case 1: // CONNECT
		return l.connect()
	case 8: // SUBSCRIBE
		l.down = string(body[4 : 4+binary.BigEndian.Uint16(body[2:])])
		l.write(0x90, body[0], body[1], 0)
		if l.enroll == nil {
			go l.pushing(done)
		}
	case 3: // PUBLISH, QoS 1
		n := 2 + int(binary.BigEndian.Uint16(body))
		l.write(0x40, body[n], body[n+1])
		return l.received(body[n+2:])
	case 12: // PINGREQ
		l.write(0xd0)
	case 14: // DISCONNECT
		return false
	}
	return true
}

func (l *peerConn) connect() bool {
	state := l.c.ConnectionState()
	l.peer.mu.Lock()
	refuse := l.refuse
	if len(state.PeerCertificates) == 0 {
		l.enrollments++
	} else {
		l.connections++
	}
	l.peer.mu.Unlock()
	if len(state.PeerCertificates) == 0 {
		exporter, err := state.ExportKeyingMaterial(transport.EnrollExporter, nil, transport.EnrollExporterSize)
		if err != nil {
			l.t.Error(err)
		}
		l.enroll = &enrolling{s: l.server, exporter: exporter}
	}
	l.write(0x20, 0, refuse)
	return refuse == 0
}

func (l *peerConn) pushing(done chan struct{}) {
	for {
		select {
		case payload := <-l.push:
			l.publish(payload)
		case <-done:
			return
		}
	}
}

func (l *peerConn) received(payload []byte) bool {
	if l.enroll == nil {
		for _, reply := range l.server.receive(payload) {
			l.publish(reply)
		}
		return true
	}
	reply, err := l.enroll.receive(payload)
	if err == nil {
		l.publish(reply)
	}
	return err == nil
}
