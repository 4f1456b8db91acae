package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/agent/qr"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

const (
	// shownKeys is how many keys people are shown one by one.
	shownKeys = 40
	// plainSteps is how many lines of progress a log gets.
	plainSteps = 10
)

// A display shows a copy as it goes on. With --json it passes the events on.
type display struct {
	qr   bool
	keys []agent.KeycopyKey // of events that come before the one they belong to

	mu    sync.Mutex // guards the rest: the countdown has a goroutine of its own
	show  *verb.Progress
	until time.Time // that the code is good; zero: nothing is counted down
	stop  chan struct{}
	ended sync.WaitGroup
}

func newDisplay(cmd *cobra.Command) *display {
	return &display{show: verb.NewProgress(cmd), stop: make(chan struct{})}
}

// end leaves the terminal in order.
func (d *display) end() {
	d.mu.Lock()
	select {
	case <-d.stop:
	default:
		close(d.stop)
	}
	d.show.End()
	d.mu.Unlock()
	d.ended.Wait()
}

// armed shows what a technician needs at the old terminal: what happens to which
// key, the code, and what to type at the new one.
func (d *display) armed(reader *control.Reader, ev agent.KeycopyEvent) error {
	var code transport.Sensitive
	if ev.Code != "" {
		var err error
		if code, err = reader.Open(agent.LabelCode, ev.Code); err != nil {
			return err
		}
		defer code.Wipe()
	}
	text := d.explain(&ev, code)
	ev.Code = string([]byte(code)) // --json: the reader of this stream is the operator
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.show.Line(ev, "%s", text); err != nil || !d.show.Live() {
		return err
	}
	d.until = time.Now().Add(time.Duration(ev.Seconds) * time.Second)
	d.ended.Go(d.count)
	return nil
}

// explain is what armed shows.
func (d *display) explain(ev *agent.KeycopyEvent, code transport.Sensitive) string {
	var b strings.Builder
	keys := append(d.keys, ev.Keys...)
	d.keys = nil
	list(&b, "Copied to the new terminal; this one keeps them, too:", keys, transport.TransferCopy)
	list(&b, "Moved to the new terminal; this one gives them up:", keys, transport.TransferMove)
	withheld(&b, ev)
	if ev.Warning != "" {
		fmt.Fprintf(&b, "Warning: %s\n", ev.Warning)
	}
	if code != nil {
		fmt.Fprintf(&b, "\n    operator code    %s\n\nType it on the new terminal, within %s:\n", string([]byte(code)), spell(ev.Seconds))
	} else {
		fmt.Fprintf(&b, "\nType your code on the new terminal, within %s:\n", spell(ev.Seconds))
	}
	for _, address := range ev.Addresses {
		fmt.Fprintf(&b, "    kagimori keycopy fetch %s\n", address)
	}
	if len(ev.Addresses) == 0 {
		fmt.Fprintf(&b, "    this terminal has no network address; plug the cable in; it listens at %s\n", ev.Listen)
	}
	d.draw(&b, ev.QR)
	b.WriteString("\nwaiting; Ctrl-C destroys the code")
	return b.String()
}

// draw draws the QR code, if somebody asked for it and could see it.
func (d *display) draw(b *strings.Builder, rows []string) {
	switch {
	case !d.qr || !d.show.Live():
	case len(rows) == 0:
		b.WriteString("\n(no QR code: there is no address to put into one)\n")
	case !d.show.Fits(qr.Width(len(rows)), qr.Height(len(rows))+1):
		fmt.Fprintf(b, "\n(the QR code needs a terminal of %d columns and %d lines)\n", qr.Width(len(rows)), qr.Height(len(rows))+1)
	default:
		b.WriteString("\n" + qr.Blocks(rows))
	}
}

// list names the keys to which one thing happens.
func list(b *strings.Builder, heading string, keys []agent.KeycopyKey, what transport.Transfer) {
	n := 0
	for _, k := range keys {
		if k.Transfer != what {
			continue
		}
		if n++; n == 1 {
			b.WriteString(heading + "\n")
		}
		if n <= shownKeys {
			fmt.Fprintf(b, "    %s  (service %s)\n", k.ID, k.Service)
		}
	}
	if n > shownKeys {
		fmt.Fprintf(b, "    and %d more, %d in all; --json lists them\n", n-shownKeys, n)
	}
}

// withheld names the others, and why.
func withheld(b *strings.Builder, ev *agent.KeycopyEvent) {
	if len(ev.Held)+ev.More > 0 {
		b.WriteString("Not taken along:\n")
	}
	for _, h := range ev.Held {
		fmt.Fprintf(b, "    %s: %s\n", h.ID, h.Reason)
	}
	if ev.More > 0 {
		fmt.Fprintf(b, "    and %d more\n", ev.More)
	}
}

// count shows how long the code is still good.
func (d *display) count() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case now := <-tick.C:
			d.mu.Lock()
			if left := d.until.Sub(now).Round(time.Second); !d.until.IsZero() && left >= 0 {
				_ = d.show.Step(nil, "waiting; the code is good for %d:%02d; Ctrl-C destroys it", left/time.Minute, left%time.Minute/time.Second)
			}
			d.mu.Unlock()
		}
	}
}

// spell writes a short time out: "5 minutes", "90 seconds".
func spell(seconds int) string {
	if seconds >= 120 && seconds%60 == 0 {
		return fmt.Sprintf("%d minutes", seconds/60)
	}
	return fmt.Sprintf("%d seconds", seconds)
}

// happened shows one step.
func (d *display) happened(ev agent.KeycopyEvent) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch keycopy.EventKind(ev.Step) {
	case "listed":
		d.keys = append(d.keys, ev.Keys...)
		return d.show.Data(ev)
	case keycopy.EventItem:
		if ev.Items > plainSteps && ev.Item*plainSteps/ev.Items == (ev.Item-1)*plainSteps/ev.Items {
			return d.show.Passing(ev, "%s", ev.Text)
		}
		return d.show.Step(ev, "%s", ev.Text)
	case keycopy.EventKilled, keycopy.EventExpired:
		d.until = time.Time{}
		return d.show.Step(ev, "%s", ev.Text) // the error that follows says it in full
	case keycopy.EventGranted:
		d.until = time.Time{}
	}
	if ev.Next != "" { // the last one
		return d.show.Line(ev, "%s", d.summary(&ev))
	}
	return d.show.Line(ev, "%s", ev.Text)
}

// summary is the last word on a copy: each key, and what to do next.
func (d *display) summary(ev *agent.KeycopyEvent) string {
	var b strings.Builder
	keys := append(d.keys, ev.Keys...)
	list(&b, "Copied:", keys, transport.TransferCopy)
	list(&b, "Moved:", keys, transport.TransferMove)
	withheld(&b, ev)
	return b.String() + ev.Text + "\n  next: " + ev.Next
}
