package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// Recovery holds the verbs for the day on which key storage does not open.
func (p Program) Recovery() *cobra.Command {
	return verb.Group("recovery", "When key storage does not open: get the keys back",
		`What this machine keeps opens with its TPM or device secret. If that is exchanged,
cleared or lost, the server can give the key back after an administrator's
decision (start), or a recovery file can (export, import).`,
		p.recoveryStatus(), p.recoveryStart(), p.recoveryExport(), p.recoveryImport(), p.recoveryAccept())
}

// call calls one method of the daemon.
func (p Program) call(cmd *cobra.Command, method string, in, out any) error {
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(cmd.Context(), p.Interface+"."+method, in, out)
}

func (p Program) recoveryStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what is prepared, what is under way, and what can be done",
		Long:    "Shows whether the server, or a recovery file, could give the key of this store\nback, which stores are set aside, and what can be done now.",
		Example: fmt.Sprintf("  %[1]s recovery status\n  %[1]s recovery status --json", p.Name),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s agent.RecoveryStatus
			if err := p.call(cmd, "RecoveryStatus", nil, &s); err != nil {
				return err
			}
			return verb.Print(cmd, s, func(w io.Writer) { showRecovery(w, &s) })
		},
	}
}

func showRecovery(w io.Writer, s *agent.RecoveryStatus) {
	server, file := any(verb.Warn("no")), any(verb.Warn("none known of, as far as the store can be read"))
	if s.Wrap > 0 {
		server = verb.Good(fmt.Sprintf("yes, recovery key version %d", s.Wrap))
	}
	if !s.Exported.IsZero() {
		file = verb.Good("made " + verb.Time(s.Exported))
	}
	verb.Fields(w, "state", s.Text, "by the server", server, "recovery file", file)
	if len(s.Aside) > 0 {
		fmt.Fprintln(w, "\nSet aside")
		t := verb.NewTable(w, "NAME", "SINCE", "DEVICE", "REQUEST", "STATE")
		for _, x := range s.Aside {
			device, request, state := "-", "-", "has no wrap for the server"
			if x.Device != nil {
				device = x.Device.Short()
			}
			if x.ID != nil {
				request, state = x.ID.String(), string(x.State)
				switch {
				case x.Refused:
					state = "the server refuses"
				case state == "":
					state = "the server is asked when it is in reach"
				}
			}
			if x.Taken {
				state = "taken over"
			}
			t.Row(x.Name, verb.Time(x.Since), device, request, state)
		}
		t.Flush("")
	}
	if s.Next != "" {
		fmt.Fprintf(w, "  next: %s\n", s.Next)
	}
}

func (p Program) recoveryStart() *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Set a store that does not open aside, and begin a fresh one",
		Long: `Moves the store that does not open into the directory "aside" of the state
directory, deletes nothing, and begins a fresh one, with a new identity of this
device. Take in the bundle that "kagimori-server terminal reenroll" makes; then the
device asks the server for the key of the earlier store, and an administrator
decides. Until then, and without it, it works with new credentials.

It is refused while what is wrong may pass by itself.`,
		Example: "  " + p.Name + " recovery start",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r agent.RecoveryStarted
			if err := p.call(cmd, "RecoveryStart", nil, &r); err != nil {
				return err
			}
			return verb.Print(cmd, r, func(w io.Writer) {
				fmt.Fprintf(w, "the store is set aside in %s, nothing is deleted; a fresh one has begun\n", r.Directory)
				for _, x := range r.Recovery.Aside {
					if !x.Taken && !x.Wrap {
						fmt.Fprintf(w, "  note: store %s has no wrap for the server; only a recovery file opens it\n", x.Name)
					}
				}
				fmt.Fprintf(w, "  next: %s\n", r.Next)
			})
		},
	}
}

func (p Program) recoveryAccept() *cobra.Command {
	cmd := &cobra.Command{
		Use: "accept-older", Short: "Take a store file although there was a newer one",
		Long: `Key storage counts the changes of keys. A file that is older than the count was put
back from a backup, by somebody who meant well or did not: keys that were
invalidated or erased since then are in force in it again, and later ones are
missing. This is an administrator's word that it is the newest there is. The
server is told, and gets a list of all that is held.`,
		Example: fmt.Sprintf("  %[1]s recovery accept-older\n  %[1]s recovery accept-older --yes", p.Name),
	}
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !*yes {
			err := verb.Confirm(cmd, `The store file is older than the last one that this machine had. Keys that were
invalidated or erased since are in force in it again, later ones are missing. If a
newer file can be found, put that back instead.`)
			if err != nil {
				return err
			}
		}
		var s agent.RecoveryStatus
		if err := p.call(cmd, "RecoveryAcceptOlder", nil, &s); err != nil {
			return err
		}
		return verb.Print(cmd, s, func(w io.Writer) {
			fmt.Fprintln(w, "the older store is in use; the server is told what it holds")
			showRecovery(w, &s)
		})
	}
	return cmd
}

// exported is what recovery export prints.
type exported struct {
	File       string         `json:"file"`
	Passphrase shownOnce      `json:"passphrase"`
	Store      transport.ID   `json:"store"`
	Terminal   transport.Name `json:"terminal,omitempty"`
}

// shownOnce is a secret that is meant to be seen by whoever asked for it.
type shownOnce transport.Sensitive

// MarshalJSON writes it as a string; a passphrase has nothing to escape.
func (s shownOnce) MarshalJSON() ([]byte, error) {
	if !json.Valid([]byte(`"` + string(s) + `"`)) {
		return nil, errors.New("passphrase cannot be shown")
	}
	return append(append([]byte{'"'}, s...), '"'), nil
}

func (p Program) recoveryExport() *cobra.Command {
	return &cobra.Command{
		Use: "export FILE", Short: "Make a recovery file, for machines without a server",
		Long: `Writes the key of this store into a file, under a passphrase that is shown once.
Whoever has the file, the passphrase and a copy of the state directory has all that
this machine keeps: keep the first two apart from each other and from the machine.
The file stays good for as long as this store lives.`,
		Example: "  " + p.Name + " recovery export /media/usb/nav-001.recovery",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return control.Problemf(control.Conflict, "move it away, or name another file", "%s exists already", args[0])
			}
			if err != nil {
				return control.Problemf(control.BadInput, "name another file", "cannot write the recovery file: %w", err)
			}
			defer func() {
				f.Close()
				if err != nil {
					os.Remove(args[0])
				}
			}()
			reader, err := control.NewReader()
			if err != nil {
				return err
			}
			var r agent.RecoveryExported
			if err := p.call(cmd, "RecoveryExport", agent.RecoveryExportParams{ReplyKey: reader.Key()}, &r); err != nil {
				return err
			}
			passphrase, err := reader.Open(agent.LabelRecovery, r.Passphrase)
			if err != nil {
				return err
			}
			defer passphrase.Wipe()
			if err := hsm.WriteFile(args[0], r.File, 0o600); err != nil {
				return control.Problemf(control.Storage, "free space, then try again", "keep the recovery file: %w", err)
			}
			out := exported{File: args[0], Passphrase: shownOnce(passphrase), Store: r.Store, Terminal: r.Terminal}
			return verb.Print(cmd, out, func(w io.Writer) {
				verb.Fields(w, "recovery file", args[0], "passphrase", string(passphrase))
				fmt.Fprintln(w, "\nThe passphrase is shown this once and kept nowhere. Keep it apart from the file, and both apart from this machine.")
			})
		},
	}
}

func (p Program) recoveryImport() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE", Short: "Open a store that does not open with its recovery file",
		Long: `Opens the store with a recovery file and its passphrase, and seals it anew to the
key storage that there is now: after a TPM was exchanged or cleared, a device secret
lost, or a boot was measured that nobody approved. If that store was set aside, its
credentials come into the present one.

Keys that were inside an earlier TPM or under an earlier device secret are gone:
this device's identity, its security codes and its PIN. Credentials work at once
through relays; the rest waits until the device is enrolled anew with a bundle of
"kagimori-server terminal reenroll". The passphrase is read without echo, or as one
line of standard input.`,
		Example: "  " + p.Name + " recovery import /media/usb/nav-001.recovery",
		RunE: func(cmd *cobra.Command, args []string) error {
			return recoveryFile.take(cmd, args[0], func(c *control.Client, file []byte, passphrase string) error {
				var r agent.RecoveryImported
				in := agent.RecoveryImportParams{File: file, Passphrase: passphrase}
				if err := c.Call(cmd.Context(), p.Interface+".RecoveryImport", in, &r); err != nil {
					return err
				}
				return verb.Print(cmd, r, func(w io.Writer) { showImported(w, &r) })
			})
		},
	}
}

func showImported(w io.Writer, r *agent.RecoveryImported) {
	if r.Taken != nil {
		fmt.Fprintf(w, "took %s over from the store of device %s, which is destroyed now\n", credentials(len(r.Taken.Credentials)), r.Taken.Device.Short())
		if n := len(r.Taken.Refused); n > 0 {
			fmt.Fprintf(w, "  refused %d that this deployment has not issued so: %v; somebody may have tampered with that store\n", n, r.Taken.Refused)
		}
	} else {
		fmt.Fprintf(w, "the store is open again, with %s\n", credentials(r.Credentials))
	}
	if r.Reenroll {
		fmt.Fprintf(w, "the keys inside the earlier key storage are gone; this is device %s now\n", r.Device.Short())
		fmt.Fprintln(w, "  until it is enrolled anew: no connection to the server, no key copy")
		fmt.Fprintln(w, "  a PIN and a passphrase that were set before are gone: set them again")
	}
	if r.Next != "" {
		fmt.Fprintf(w, "  next: %s\n", r.Next)
	}
}

func credentials(n int) string {
	if n == 1 {
		return "1 credential"
	}
	return fmt.Sprintf("%d credentials", n)
}

var recoveryFile = sealedFile{"recovery file", agent.LabelRecovery, transport.MaxRecoveryFile, "name the recovery file that was made with recovery export"}
