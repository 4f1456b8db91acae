package daemon

import (
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Unlock is the verb that gives key storage its passphrase.
func (p Program) Unlock() *cobra.Command {
	return &cobra.Command{
		Use: "unlock", Short: "Give key storage its passphrase",
		Long: fmt.Sprintf(`Gives the daemon the passphrase that "%s passphrase set" has set, which it
waits for after each start. The passphrase is read from the terminal without
echo, or else as one line of standard input.

Each try costs the daemon some memory and time. Nobody can recover a passphrase
that is forgotten; the keys behind it then have to be made anew.`, p.Name),
		Example: "  " + p.Name + " unlock",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, in, err := withPassphrase(cmd, "Passphrase of key storage: ")
			if err != nil {
				return err
			}
			defer c.Close()
			var out agent.UnlockReply
			if err := c.Call(cmd.Context(), p.Interface+".Unlock", in, &out); err != nil {
				return err
			}
			return verb.Print(cmd, out, func(w io.Writer) {
				if out.Unlocked {
					fmt.Fprintln(w, "key storage is open")
				} else {
					fmt.Fprintln(w, "nothing to do: key storage was open already")
				}
			})
		},
	}
}

// Passphrase are the verbs that set and remove that passphrase.
func (p Program) Passphrase() *cobra.Command {
	set := &cobra.Command{
		Use: "set", Short: "Set the passphrase of key storage, or another one",
		Long: fmt.Sprintf(`Locks key storage of kind "file" with a passphrase of 8 bytes or more. From the
next start on the daemon waits for it ("%s unlock"), or reads it from where
[hsm] passphrase in the configuration says. It is read twice from the terminal
without echo, or else as one line of standard input.

It guards what is on the disk of a machine that is switched off. Copies of the
state directory that were made before can be opened without it: destroy them.`, p.Name),
		Example: "  " + p.Name + " passphrase set",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, in, err := withPassphrase(cmd, "New passphrase: ", "Once more: ")
			if err != nil {
				return err
			}
			defer c.Close()
			return changed(cmd, c, p.Interface+".PassphraseSet", in)
		},
	}
	remove := &cobra.Command{
		Use: "remove", Short: "Remove the passphrase of key storage",
		Long:    "Lets key storage open by itself again. Who has the disk then has the keys.",
		Example: "  " + p.Name + " passphrase remove",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := verb.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			return changed(cmd, c, p.Interface+".PassphraseRemove", nil)
		},
	}
	return verb.Group("passphrase", "The passphrase of key storage",
		"A passphrase that is needed, besides what lies on the disk, to open the keys.", set, remove)
}

// changed calls a method that changes the passphrase and says what it is worth.
func changed(cmd *cobra.Command, c *control.Client, method string, in any) error {
	var out agent.PassphraseReply
	if err := c.Call(cmd.Context(), method, in, &out); err != nil {
		return err
	}
	return verb.Print(cmd, out, func(w io.Writer) {
		if out.Set {
			fmt.Fprintln(w, "the passphrase is set; nobody can recover it when it is forgotten")
		} else {
			fmt.Fprintln(w, "no passphrase is set")
		}
		for _, note := range out.Notes {
			fmt.Fprintf(w, "  %s\n", note)
		}
	})
}

// withPassphrase asks for a passphrase, once for each prompt, and seals it for
// the daemon. Without a terminal it is asked for once.
func withPassphrase(cmd *cobra.Command, prompts ...string) (*control.Client, *agent.UnlockParams, error) {
	if !verb.Asks(cmd) {
		prompts = prompts[:1]
	}
	var p transport.Sensitive
	defer func() { p.Wipe() }()
	for n, prompt := range prompts {
		typed, err := verb.ReadSecret(cmd, prompt)
		if err != nil {
			return nil, nil, err
		}
		if n > 0 && !bytes.Equal(p, typed) {
			typed.Wipe()
			return nil, nil, control.Problemf(control.BadInput, "type the same passphrase twice; nothing was changed", "the two are different")
		}
		p.Wipe()
		p = typed
	}
	c, err := verb.Dial(cmd)
	if err != nil {
		return nil, nil, err
	}
	in := &agent.UnlockParams{}
	if in.Passphrase, err = c.Seal(cmd.Context(), agent.LabelStorage, p); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, in, nil
}
