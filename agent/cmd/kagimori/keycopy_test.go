package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/agent/keycopy"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// shown runs do as a verb and gives what people, or programs, see.
func shown(t *testing.T, asJSON bool, do func(*display) error) string {
	t.Helper()
	f := verb.New("kagimori", "x", "x", "")
	f.Add(&cobra.Command{Use: "do", RunE: func(cmd *cobra.Command, _ []string) error {
		d := newDisplay(cmd)
		defer d.end()
		return do(d)
	}})
	args := []string{"do"}
	if asJSON {
		args = append(args, "--json")
	}
	var out, errOut bytes.Buffer
	if code := f.Run(t.Context(), args, strings.NewReader(""), &out, &errOut); code != 0 {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	return out.String() + errOut.String()
}

// anOffer is an armed event whose code only the reader can open.
func anOffer(t *testing.T) (*control.Reader, agent.KeycopyEvent) {
	t.Helper()
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := control.SealTo(reader.Key(), agent.LabelCode, []byte("123 456 782"))
	if err != nil {
		t.Fatal(err)
	}
	return reader, agent.KeycopyEvent{
		Step: "armed", Code: sealed, CodeKind: keycopy.CodeGenerated, Listen: "0.0.0.0:8885", Addresses: []string{"192.0.2.7:8885"}, Seconds: 300, Items: 3,
		Keys: []agent.KeycopyKey{
			{ID: "maps-1", Service: "maps", Transfer: transport.TransferCopy}, {ID: "toll-1", Service: "toll", Transfer: transport.TransferMove},
			{ID: "tiles-1", Service: "tiles", Transfer: transport.TransferCopy}},
		Held:    []agent.KeycopyHeld{{ID: "own-1", Reason: "it may not leave its terminal"}},
		Warning: "the server does not accept this terminal",
	}
}

// What a technician sees at the old terminal: what happens to each key, before
// the code; the code in groups, the line to type, how long there is.
func TestOfferAsSeen(t *testing.T) {
	reader, ev := anOffer(t)
	got := shown(t, false, func(d *display) error { return d.armed(reader, ev) })
	const want = `Copied to the new terminal; this one keeps them, too:
    maps-1  (service maps)
    tiles-1  (service tiles)
Moved to the new terminal; this one gives them up:
    toll-1  (service toll)
Not taken along:
    own-1: it may not leave its terminal
Warning: the server does not accept this terminal

    operator code    123 456 782

Type it on the new terminal, within 5 minutes:
    kagimori keycopy fetch 192.0.2.7:8885

waiting; Ctrl-C destroys the code
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var back agent.KeycopyEvent
	if err := json.Unmarshal([]byte(shown(t, true, func(d *display) error { return d.armed(reader, ev) })), &back); err != nil || back.Code != "123 456 782" {
		t.Errorf("with --json: %+v, %v", back, err)
	}
	own := ev
	own.Code, own.CodeKind, own.Addresses = "", keycopy.CodeTyped, nil
	if got := shown(t, false, func(d *display) error { return d.armed(reader, own) }); !strings.Contains(got, "Type your code on the new terminal") || !strings.Contains(got, "plug the cable in") {
		t.Errorf("with a code of the operator's own, without a network:\n%s", got)
	}
	other, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{}
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	if err := newDisplay(cmd).armed(other, ev); err == nil {
		t.Error("a code sealed to somebody else was shown")
	}
}

func TestResultAsSeen(t *testing.T) {
	ev := agent.KeycopyEvent{
		Step: "closed", Text: "done: 1 key here; terminal nav-001 still holds it", Next: "programs reach maps through 127.0.0.1:8080", More: 2,
		Keys: []agent.KeycopyKey{{ID: "maps-1", Service: "maps", Transfer: transport.TransferCopy}}, Held: []agent.KeycopyHeld{{ID: "own-1", Reason: "it may not leave its terminal"}},
	}
	got := shown(t, false, func(d *display) error { return d.happened(ev) })
	const want = `Copied:
    maps-1  (service maps)
Not taken along:
    own-1: it may not leave its terminal
    and 2 more
done: 1 key here; terminal nav-001 still holds it
  next: programs reach maps through 127.0.0.1:8080
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A log of a thousand keys stays short for people and is whole for programs.
func TestAThousandKeysAsSeen(t *testing.T) {
	const n = 1000
	run := func(d *display) error {
		page := agent.KeycopyEvent{Step: "listed", Items: n}
		for i := range n {
			page.Keys = append(page.Keys, agent.KeycopyKey{ID: transport.Name(fmt.Sprintf("cr-%d", i)), Service: "maps", Transfer: transport.TransferCopy})
		}
		rest := page.Keys[n-100:]
		page.Keys = page.Keys[:n-100]
		for i := 1; i <= n; i++ {
			if err := d.happened(agent.KeycopyEvent{Step: "item", Item: i, Items: n, Text: fmt.Sprintf("%d of %d", i, n)}); err != nil {
				return err
			}
		}
		if err := d.happened(page); err != nil {
			return err
		}
		return d.happened(agent.KeycopyEvent{Step: "closed", Items: n, Keys: rest, Text: "done", Next: "drive"})
	}
	text := shown(t, false, run)
	if lines := strings.Count(text, "\n"); lines > plainSteps+shownKeys+5 || !strings.Contains(text, "1000 of 1000") || !strings.Contains(text, "and 960 more, 1000 in all") {
		t.Errorf("%d lines:\n%s", lines, text)
	}
	if lines := strings.Count(shown(t, true, run), "\n"); lines != n+2 {
		t.Errorf("%d events for programs, want %d", lines, n+2)
	}
}

// Nobody is asked to confirm what is for the other end, or for another phase.
func TestResortsThatDoNotApply(t *testing.T) {
	const old, fresh = transport.KeycopySource, transport.KeycopyTarget
	for _, c := range []struct {
		method string
		side   transport.KeycopySide
		phase  transport.KeycopyPhase
		moved  int
		want   string // "": it applies
	}{
		{methodReclaim, old, transport.KeycopyCommitted, 1, ""},
		{methodReclaim, fresh, transport.KeycopyStaged, 1, "this terminal is the new one"},
		{methodReclaim, old, transport.KeycopyDone, 1, "not for this key copy"},
		{methodActivate, fresh, transport.KeycopyStaged, 1, ""},
		{methodActivate, fresh, transport.KeycopyStaged, 0, "not for this key copy"},
		{methodActivate, old, transport.KeycopyCommitted, 1, "this terminal is the old one"},
		{methodAbandon, old, transport.KeycopyOffered, 0, ""},
		{methodAbandon, fresh, transport.KeycopyStarted, 0, ""},
		{methodAbandon, fresh, transport.KeycopyStaged, 0, ""},
		{methodAbandon, old, transport.KeycopyCommitted, 1, "not for this key copy"},
		{methodAbandon, fresh, transport.KeycopyClosed, 0, "not for this key copy"},
		{methodDrop, fresh, transport.KeycopyStaged, 1, ""},
	} {
		err := applies(c.method, &agent.KeycopyDeal{Side: c.side, Phase: c.phase.String(), Moved: c.moved})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %s in %s: %v, want %q", c.method, c.side, c.phase, err, c.want)
		}
	}
}
