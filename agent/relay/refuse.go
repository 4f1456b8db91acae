package relay

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"time"
)

const (
	// refuseWait is how long a program that has sent nothing yet may take to show
	// whether it speaks HTTP.
	refuseWait = 2 * time.Second
	// drainWait and maxDrain bound what is still read behind an answer. Closing
	// with unread bytes makes the kernel reset the connection, and the program
	// may never see the answer.
	drainWait = time.Second
	maxDrain  = 1 << 20
	// maxWhy bounds the reason that is shown, in bytes.
	maxWhy = 1 << 10
	// headSize is how much of a program's first bytes is looked at.
	headSize = 16
)

// refuse tells the program why nobody is there, if it speaks HTTP, and closes.
// head is what was read from it already.
func (r *Relay) refuse(local net.Conn, head []byte, why error) {
	defer local.Close()
	_ = local.SetDeadline(time.Now().Add(refuseWait))
	buf := r.buffer()
	defer r.release(buf)
	if len(head) == 0 {
		n, _ := local.Read(buf[:])
		head = buf[:n]
	}
	if method, ok := httpMethod(head); ok {
		if _, err := local.Write(answer(method, fmt.Sprintf("kagimori relay, service %s: %v\n", r.cfg.Service, why))); err != nil {
			return
		}
	}
	r.drain(local)
}

// drain says that nothing follows, and reads on until the program has seen it.
func (r *Relay) drain(local net.Conn) {
	buf := r.buffer()
	defer r.release(buf)
	closeWrite(local)
	_ = local.SetDeadline(time.Now().Add(drainWait))
	for total := 0; total < maxDrain; {
		n, err := local.Read(buf[:])
		if err != nil {
			return
		}
		total += n
	}
}

// httpMethod says whether head opens an HTTP/1 request (RFC 9112 §3).
func httpMethod(head []byte) (method string, ok bool) {
	m, rest, found := bytes.Cut(head[:min(len(head), headSize)], []byte(" "))
	if !found || len(m) < 3 || bytes.ContainsFunc(m, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		return "", false
	}
	if len(rest) > 0 && rest[0] <= ' ' || string(m) == "PRI" { // PRI opens HTTP/2
		return "", false
	}
	return string(m), true
}

func answer(method, body string) []byte {
	body = strings.ToValidUTF8(body[:min(len(body), maxWhy)], "")
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(body))
	if method != "HEAD" {
		b.WriteString(body)
	}
	return b.Bytes()
}

// refused takes note of a connection that reached no gate. It logs the first
// and then once a minute at most: programs try again and again.
func (r *Relay) refused(why error) {
	r.mu.Lock()
	r.status.Refused++
	r.status.LastWhy, r.status.LastTime = why.Error(), time.Now()
	log, unsaid := r.quiet.allow(r.status.LastTime)
	r.mu.Unlock()
	if log {
		r.log.Warn("relay refuses connections", "err", why, "unsaid", unsaid)
	}
}

// limiter lets one event a minute through and counts the others. The zero value
// is ready.
type limiter struct {
	last   time.Time
	unsaid int
}

func (l *limiter) allow(now time.Time) (ok bool, unsaid int) {
	if !l.last.IsZero() && now.Sub(l.last) < time.Minute {
		l.unsaid++
		return false, 0
	}
	unsaid, l.unsaid, l.last = l.unsaid, 0, now
	return true, unsaid
}
