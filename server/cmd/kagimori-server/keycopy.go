package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

func keycopyVerbs() *cobra.Command {
	return verb.Group("keycopy", "Key copies: what terminals report of them",
		"Terminals copy and move keys among themselves, without this server. Each end tells\nof it when it next connects. Where the two differ, an administrator has to look.",
		keycopyList(), keycopyShow())
}

func keycopyList() *cobra.Command {
	var q listFlags
	var open, contradictions bool
	var terminal string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List key copies, newest first",
		Long: `Lists key copies with what both ends say of them, newest first. A state is open
(one end has not reported, or has to go on), consistent, or contradiction.
Columns to sort by: changed, source, status, target; to filter by: credential,
mode, status, terminal.`,
		Example: "  kagimori-server keycopy list\n  kagimori-server keycopy list --open --terminal nav-001\n  kagimori-server keycopy list --contradictions\n  kagimori-server keycopy list --where credential=cr-abcdefghij",
	}
	q.add(cmd)
	cmd.Flags().BoolVar(&open, "open", false, "only those that wait for something")
	cmd.Flags().BoolVar(&contradictions, "contradictions", false, "only those whose ends contradict each other")
	cmd.Flags().StringVar(&terminal, "terminal", "", "only those that a terminal, `NAME`, is an end of")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if open && contradictions {
			return control.Problemf(control.Usage, "give one of the two", "nothing is both open and a contradiction")
		}
		if open {
			q.where = append(q.where, "status="+string(store.KeycopyOpen))
		}
		if contradictions {
			q.where = append(q.where, "status="+string(store.KeycopyContradiction))
		}
		if terminal != "" {
			q.where = append(q.where, "terminal="+terminal)
		}
		if q.sort == "" {
			q.reverse = !q.reverse
		}
		list := []server.KeycopyInfo{}
		err := q.pages(cmd, func(in server.ListParams) (string, error) {
			var page server.KeycopyPage
			err := ask(cmd, "KeycopyList", in, &page)
			list = append(list, page.Keycopies...)
			return page.Next, err
		})
		if err != nil {
			return err
		}
		return verb.Print(cmd, map[string]any{"keycopies": list}, func(w io.Writer) {
			t := verb.NewTable(w, "ID", "FROM", "TO", "DATE", "KEYS", "MOVED", "FROM SAYS", "TO SAYS", "STATE")
			for _, k := range list {
				t.Row(k.Txn, endName(k.Source), endName(k.Target), verb.Time(matched(k)), k.Items, k.Moved, dash(k.Source.Phase), dash(k.Target.Phase), keycopyState(k))
			}
			t.Flush(q.empty("no terminal has reported a key copy"))
		})
	}
	return cmd
}

// matched is when the codes matched, as the end says that knows, or else when
// the server first heard of it.
func matched(k server.KeycopyInfo) (at time.Time) {
	for _, t := range []time.Time{k.Source.Matched, k.Target.Matched, k.Source.Reported, k.Target.Reported} {
		if !t.IsZero() {
			return t
		}
	}
	return at
}

func endName(e server.KeycopyEndInfo) string {
	if e.Terminal == "" {
		return "device " + e.Device.Short()
	}
	return string(e.Terminal)
}

func keycopyState(k server.KeycopyInfo) verb.Cell {
	switch k.Status {
	case store.KeycopyConsistent:
		return verb.Good(string(k.Status))
	case store.KeycopyOpen:
		return verb.Warn("open: " + k.Waits)
	}
	codes := ""
	for _, p := range k.Problems {
		codes += " " + p.Code
	}
	return verb.Bad(string(k.Status) + ":" + codes)
}

func keycopyShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show a key copy with all its keys",
		Long: `Shows what both ends of a key copy say, by its id or the first 8 digits of that: phases with their dates (by the terminals'
own clocks), whether a person went on alone there, what was copied or moved and
taken, the receipt, and what does not fit. A receipt is good if the new terminal's
identity key has signed it for this transaction and these keys; it is there only
if that terminal had an identity. Who has a key only its holder's claim proves:
see credential show.`,
		Example: "  kagimori-server keycopy show 00112233445566778899aabbccddeeff\n  kagimori-server keycopy show 00112233",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, items, err := wholeKeycopy(cmd, args[0])
			if err != nil {
				return err
			}
			all := []server.KeycopyItemInfo{}
			for _, list := range items {
				all = append(all, list...)
			}
			d.Items, d.Next = all, ""
			return verb.Print(cmd, d, func(w io.Writer) {
				for n, k := range d.Keycopies {
					if n > 0 {
						fmt.Fprintln(w)
					}
					printKeycopy(w, k, items[n])
				}
			})
		},
	}
}

// wholeKeycopy reads all rows of an id, with the items of each.
func wholeKeycopy(cmd *cobra.Command, txn string) (d server.KeycopyDetail, items [][]server.KeycopyItemInfo, err error) {
	in := server.KeycopyShowParams{Txn: txn, Limit: pageRows}
	for row := 0; ; {
		var page server.KeycopyDetail
		if err := ask(cmd, "KeycopyShow", in, &page); err != nil {
			return d, nil, err
		}
		if row == 0 && len(items) == 0 {
			d, items = page, make([][]server.KeycopyItemInfo, len(page.Keycopies))
		}
		items[row] = append(items[row], page.Items...)
		if in.After = page.Next; in.After != "" {
			continue
		}
		if row++; row >= len(d.Keycopies) {
			return d, items, nil
		}
		in.Row = d.Keycopies[row].Row
	}
}

func printKeycopy(w io.Writer, k server.KeycopyInfo, items []server.KeycopyItemInfo) {
	verb.Fields(w, "id", k.Txn, "mode", k.Mode, "state", keycopyState(k), "keys", fmt.Sprintf("%d, %d of them moved", k.Items, k.Moved), "receipt", receiptText(k), "alone", aloneText(k))
	for _, e := range []struct {
		title string
		end   server.KeycopyEndInfo
	}{{"from", k.Source}, {"to", k.Target}} {
		phase := dash(e.end.Phase)
		if e.end.Forced {
			phase += ", by a person"
		}
		fmt.Fprintln(w)
		verb.Fields(w, e.title, endName(e.end), "device", e.end.Device, "says", phase, "since", verb.Time(e.end.Changed), "codes matched", verb.Time(e.end.Matched), "reported first", verb.Time(e.end.Reported))
	}
	for _, p := range k.Problems {
		fmt.Fprintf(w, "\ndoes not fit (%s): %s\n", p.Code, p.Text)
		next(w, p.Next)
	}
	fmt.Fprintln(w)
	t := verb.NewTable(w, "CREDENTIAL", "SERVICE", "FROM SAYS", "TO SAYS", "HELD BY")
	for _, i := range items {
		service := dash(string(i.Service))
		if !i.Known {
			service = "not of this server"
		}
		t.Row(i.Credential, service, wordText(i.Source), wordText(i.Target), dash(names(i.Holders)))
	}
	t.Flush("no keys have been reported yet")
}

func receiptText(k server.KeycopyInfo) verb.Cell {
	switch k.Receipt {
	case "none":
		return verb.Dim("none that is signed")
	case store.ProofGood:
		return verb.Good("signed by " + endName(k.Target))
	case store.ProofBad:
		return verb.Bad("not signed by " + endName(k.Target) + " for this")
	}
	return verb.Warn("signed; it cannot be checked yet")
}

func aloneText(k server.KeycopyInfo) string {
	if k.Settled == "" {
		return "-"
	}
	who := endName(k.Source)
	if k.Settled == transport.KeycopyTarget {
		who = endName(k.Target)
	}
	text := who + " was let to, on " + verb.Time(k.SettledAt)
	if !k.Refused.IsZero() {
		text += "; the other one was refused on " + verb.Time(k.Refused)
	}
	return text
}

func wordText(i *server.KeycopyWordInfo) string {
	switch {
	case i == nil:
		return "-"
	case !i.Taken:
		return string(i.Transfer) + ", not taken"
	}
	return string(i.Transfer) + ", taken"
}
