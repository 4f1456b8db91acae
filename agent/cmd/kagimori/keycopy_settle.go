package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// The verbs about key copies on record: what stands how, going on now, and the
// last resorts.

func settleVerbs() []*cobra.Command {
	return []*cobra.Command{dealsVerb(), dealVerb(), resumeVerb(), reclaimVerb(), activateVerb(), abandonVerb()}
}

func dealsVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the key copies on record, and what is to be done",
		Long: `Lists the key copies that this terminal took part in: those that are open, with
what is to be done, and the last 64 that are over. Each has an id; the first
digits of it name it.`,
		Example: "  kagimori keycopy list\n  kagimori keycopy list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			all := []agent.KeycopyDeal{}
			err = c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyList", nil, func(raw json.RawMessage) error {
				var page agent.KeycopyDeals
				err := json.Unmarshal(raw, &page)
				all = append(all, page.Copies...)
				return err
			})
			if err != nil {
				return err
			}
			return verb.Print(cmd, agent.KeycopyDeals{Copies: all}, func(w io.Writer) { showDeals(w, all) })
		},
	}
}

func showDeals(w io.Writer, list []agent.KeycopyDeal) {
	t := verb.NewTable(w, "COPY", "THIS IS", "WITH", "WHEN", "STATE", "")
	for _, d := range list {
		t.Row(d.Short, end(d.Side), peer(&d), verb.Time(d.At), dealState(&d), d.Text)
	}
	t.Flush("no key copies yet: kagimori keycopy offer, on the old terminal")
	for _, d := range list {
		if d.Open {
			fmt.Fprintf(w, "\n%s: %s\n", d.Short, d.Next)
			if d.Trouble != "" {
				fmt.Fprintf(w, "  the last attempt: %s\n", d.Trouble)
			}
		}
	}
}

func end(s transport.KeycopySide) string {
	if s == transport.KeycopySource {
		return "the old one"
	}
	return "the new one"
}

func peer(d *agent.KeycopyDeal) string {
	if d.Name != "" {
		return string(d.Name)
	}
	return "device " + d.Peer.Short()
}

func dealState(d *agent.KeycopyDeal) verb.Cell {
	switch {
	case d.Conflict:
		return verb.Bad(d.Phase)
	case d.Open:
		return verb.Warn(d.Phase)
	}
	return verb.Good(d.Phase)
}

func dealVerb() *cobra.Command {
	return &cobra.Command{
		ValidArgsFunction: copyIDs,
		Use:               "show TXN",
		Short:             "Show one key copy and what became of each key",
		Long:              "Shows one key copy: where it stands, what is to be done, and for each key whether\nthe new terminal took it, why not, and what it is on this one.",
		Example:           "  kagimori keycopy show 3f9a01c2",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			page, err := askDeal(cmd, c, args[0])
			if err != nil {
				return err
			}
			return verb.Print(cmd, page, func(w io.Writer) { showDeal(w, page) })
		},
	}
}

// askDeal gets one key copy whole.
func askDeal(cmd *cobra.Command, c *control.Client, txn string) (*agent.KeycopyDealPage, error) {
	var all *agent.KeycopyDealPage
	err := c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyShow", agent.DealParams{Txn: txn}, func(raw json.RawMessage) error {
		var page agent.KeycopyDealPage
		if err := json.Unmarshal(raw, &page); err != nil {
			return err
		}
		if all == nil {
			all = &page
			return nil
		}
		all.Keys = append(all.Keys, page.Keys...)
		return nil
	})
	return all, err
}

func showDeal(w io.Writer, page *agent.KeycopyDealPage) {
	d := page.Deal
	reported := verb.Good("yes")
	if d.Refusal != "" {
		reported = verb.Bad("refused: " + d.Refusal)
	} else if !d.Reported {
		reported = verb.Warn("not yet")
	}
	next := cmp.Or(d.Next, "nothing")
	verb.Fields(w,
		"copy", d.Txn.String(), "this is", end(d.Side), "with", peer(d)+" at "+d.Remote, "mode", string(d.Mode),
		"began", verb.Time(d.At), "since", verb.Time(d.Since), "state", dealState(d), "means", d.Text, "next", next,
		"last attempt", cmp.Or(d.Trouble, "-"), "settled by hand", map[bool]string{false: "no", true: "yes"}[d.Forced], "reported", reported)
	fmt.Fprintln(w)
	t := verb.NewTable(w, "CREDENTIAL", "SERVICE", "TRANSFER", "TAKEN", "ON THIS TERMINAL")
	for _, k := range page.Keys {
		taken := verb.Good("yes")
		if !k.Taken {
			taken = verb.Warn("no")
		}
		if k.Why != "" {
			taken = verb.Warn("no: " + k.Why)
		}
		t.Row(k.ID, k.Service, string(k.Transfer), taken, k.Here)
	}
	t.Flush("no keys")
	if more := d.Items - len(page.Keys); more > 0 {
		fmt.Fprintf(w, "and %d more that are not remembered one by one\n", more)
	}
	for _, h := range page.Withheld {
		fmt.Fprintf(w, "not offered: %s: %s\n", h.ID, h.Reason)
	}
	if page.More > 0 {
		fmt.Fprintf(w, "not offered: %d more\n", page.More)
	}
}

func resumeVerb() *cobra.Command {
	cmd := &cobra.Command{
		ValidArgsFunction: copyIDs,
		Use:               "resume [TXN]",
		Short:             "On the new terminal: go on now with a copy that is open",
		Long: `Goes on with a key copy that a broken connection or a power cut left open. The
terminal does so by itself, at once and then at least every minute; this does it
now, and shows what happens. No code is needed. Without TXN it is the one that is
open. --address is for an old terminal that has another address now.`,
		Example: "  kagimori keycopy resume\n  kagimori keycopy resume 3f9a01c2 --address 192.0.2.8:8885",
	}
	address := cmd.Flags().String("address", "", "where the old terminal is now, `HOST:PORT`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		in := agent.ResumeParams{Address: *address}
		if len(args) > 0 {
			in.Txn = args[0]
		}
		show := newDisplay(cmd)
		defer show.end()
		return c.Stream(cmd.Context(), "com.kagimori.agent.KeycopyResume", in, func(raw json.RawMessage) error {
			var ev agent.KeycopyEvent
			if err := json.Unmarshal(raw, &ev); err != nil {
				return err
			}
			return show.happened(ev)
		})
	}
	return cmd
}

func reclaimVerb() *cobra.Command {
	return resortVerb(&cobra.Command{
		Use:   "reclaim TXN",
		Short: "On the old terminal: take back keys that moved to one that is gone",
		Long: `Takes back keys that are disabled here because they moved to another terminal. Do
it only if that terminal is gone for good: lost, broken, wiped. If it is not, both
use the keys. A terminal that is just off comes back by itself.

The management server is asked first, if it is in reach, and does not allow it
when it knows that the new terminal uses the keys. What was done is in the audit
log and is reported.`,
		Example: "  sudo kagimori keycopy reclaim 3f9a01c2\n  sudo kagimori keycopy reclaim 3f9a01c2 --yes",
	}, methodReclaim, `The keys that moved to %[2]s are to be used on this terminal again.
Do this only if that terminal is gone for good: if it is merely off, it may use
them already, and then both do.`)
}

func activateVerb() *cobra.Command {
	return resortVerb(&cobra.Command{
		Use:   "activate TXN",
		Short: "On the new terminal: use keys that wait for an old one that is gone",
		Long: `Puts keys to use that have come here and wait for the old terminal to give them
up. Do it only if that terminal is gone for good, or will never be used again: it
may still use the keys itself. The old one is tried first: if it answers, the copy
just goes on.

The management server is asked next, if it is in reach, and does not allow it when
it knows that the old terminal took the keys back. What was done is in the audit
log and is reported.`,
		Example: "  sudo kagimori keycopy activate 3f9a01c2\n  sudo kagimori keycopy activate 3f9a01c2 --yes",
	}, methodActivate, `The keys that came from %[2]s are to be used on this terminal,
although that one has not given them up. Do this only if it is gone for good or
will never be used again: otherwise both may use them.`)
}

func abandonVerb() *cobra.Command {
	cmd := resortVerb(&cobra.Command{
		Use:   "abandon TXN",
		Short: "End a key copy that is open",
		Long: `Ends a key copy that does not go on, so that nothing waits for it any more. On the
old terminal that is one of which the new one has confirmed nothing: nothing has
changed here. On the new terminal, what is in use stays in use.

If keys wait here for an old terminal to give them up, they are destroyed: that
takes an administrator. The old terminal still has them; if it is gone for good,
so are they, and "kagimori keycopy activate" is what you want.`,
		Example: "  kagimori keycopy abandon 3f9a01c2\n  sudo kagimori keycopy abandon 3f9a01c2 --yes",
	}, "", "")
	return cmd
}

const (
	methodReclaim  = "com.kagimori.agent.KeycopyReclaim"
	methodActivate = "com.kagimori.agent.KeycopyActivate"
	methodAbandon  = "com.kagimori.agent.KeycopyAbandon"
	methodDrop     = "com.kagimori.agent.KeycopyDrop"

	abandonText = "Key copy %[1]s with %[2]s is to be ended.\nNo key is lost by that."
	dropText    = `The keys that came from %[2]s and wait here are to be destroyed.
If that terminal is gone for good, so are they: then use them instead,
with kagimori keycopy activate %[1]s.`
)

// applies says whether a method can do anything about a copy as it stands: nobody
// is asked to confirm what the daemon would refuse.
func applies(method string, d *agent.KeycopyDeal) error {
	side, phase := d.Side, transport.KeycopyStaged
	switch method {
	case methodReclaim:
		side, phase = transport.KeycopySource, transport.KeycopyCommitted
	case methodActivate:
		side = transport.KeycopyTarget
	case methodAbandon:
		if d.Phase == transport.KeycopyOffered.String() || d.Phase == transport.KeycopyStarted.String() {
			return nil
		}
	}
	switch {
	case d.Side != side:
		return control.Problemf(control.Conflict, "do it on the other terminal", "this terminal is %s of key copy %s", end(d.Side), d.Short)
	case d.Phase != phase.String() || method == methodActivate && d.Moved == 0:
		return control.Problemf(control.Conflict, cmp.Or(d.Next, "nothing to do"), "that is not for this key copy: %s", d.Text)
	}
	return nil
}

// resortVerb is a verb that a person confirms by the copy's id. Without a method
// it ends the copy, by what that means.
func resortVerb(cmd *cobra.Command, method, explanation string) *cobra.Command {
	cmd.ValidArgsFunction = copyIDs
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := verb.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		page, err := askDeal(cmd, c, args[0])
		if err != nil {
			return err
		}
		d, method, explanation := page.Deal, method, explanation
		if method == "" {
			method, explanation = methodAbandon, abandonText
			if d.Phase == transport.KeycopyStaged.String() && d.Moved > 0 {
				method, explanation = methodDrop, dropText
			}
		}
		if !*yes {
			if err := applies(method, d); err != nil {
				return err
			}
			text := fmt.Sprintf(explanation, d.Short, peer(d)+" at "+d.Remote)
			if err := verb.ConfirmBy(cmd, "Now: "+d.Text+".\n"+text, d.Short); err != nil {
				return err
			}
		}
		var out agent.KeycopySettled
		if err := c.Call(cmd.Context(), method, agent.DealParams{Txn: d.Txn.String()}, &out); err != nil {
			return err
		}
		return verb.Print(cmd, out, func(w io.Writer) {
			fmt.Fprintln(w, out.Text)
			if out.Server == "absent" {
				fmt.Fprintln(w, "  the management server was not in reach; it is told later")
			}
			if out.Next != "" {
				fmt.Fprintln(w, "  next: "+out.Next)
			}
		})
	}
	return cmd
}
