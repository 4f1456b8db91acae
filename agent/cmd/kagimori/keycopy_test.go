package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// shown runs do as a verb and gives what people, or programs, see.
func shown(t *testing.T, asJSON bool, do func(*verb.Progress) error) string {
	t.Helper()
	f := verb.New("kagimori", "x", "x", "")
	f.Add(&cobra.Command{Use: "do", RunE: func(cmd *cobra.Command, _ []string) error {
		p := verb.NewProgress(cmd)
		defer p.End()
		return do(p)
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

// What a technician sees at the old terminal: what is copied, the code in
// groups, the line to type, how long there is.
func TestOfferAsSeen(t *testing.T) {
	reader, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := control.SealTo(reader.Key(), agent.LabelCode, []byte("123 456 782"))
	if err != nil {
		t.Fatal(err)
	}
	ev := agent.KeycopyEvent{
		Step: "armed", Code: sealed, Listen: "192.0.2.7:8885", Seconds: 300, Items: 3,
		Keys:    []agent.KeycopyKey{{ID: "maps-1", Service: "maps"}, {ID: "tiles-1", Service: "tiles"}},
		Held:    []agent.KeycopyHeld{{ID: "own-1", Reason: "it may not leave its terminal"}},
		Warning: "the server does not accept this terminal",
	}
	got := shown(t, false, func(p *verb.Progress) error { return armed(p, reader, ev) })
	const want = `To be copied to the new terminal; this one keeps them:
    maps-1  (service maps)
    tiles-1  (service tiles)
    and 1 more
  not own-1: it may not leave its terminal
  warning: the server does not accept this terminal

    operator code    123 456 782

Type it on the new terminal, within 5 minutes:
    kagimori keycopy fetch 192.0.2.7:8885

waiting; Ctrl-C destroys the code
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var back agent.KeycopyEvent
	if err := json.Unmarshal([]byte(shown(t, true, func(p *verb.Progress) error { return armed(p, reader, ev) })), &back); err != nil || back.Code != "123 456 782" {
		t.Errorf("with --json: %+v, %v", back, err)
	}
	other, err := control.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	if err := armed(verb.NewProgress(discard(t)), other, ev); err == nil {
		t.Error("a code sealed to somebody else was shown")
	}
}

func discard(t *testing.T) *cobra.Command {
	t.Helper()
	cmd := &cobra.Command{}
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	return cmd
}

func TestResultAsSeen(t *testing.T) {
	ev := agent.KeycopyEvent{
		Step: "closed", Text: "done: 1 key here; terminal nav-001 still holds it", Next: "programs reach maps through 127.0.0.1:8080", More: 2,
		Keys: []agent.KeycopyKey{{ID: "maps-1", Service: "maps"}}, Held: []agent.KeycopyHeld{{ID: "own-1", Reason: "it may not leave its terminal"}},
	}
	got := shown(t, false, func(p *verb.Progress) error { return happened(p, ev) })
	const want = `    maps-1  (service maps)
  not own-1: it may not leave its terminal
  and 2 more not copied
done: 1 key here; terminal nav-001 still holds it
  next: programs reach maps through 127.0.0.1:8080
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
