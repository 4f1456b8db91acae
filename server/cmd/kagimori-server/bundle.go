package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/hsm"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// outFlag says where a bundle goes.
func outFlag(cmd *cobra.Command, out *string, byDefault string) {
	cmd.Flags().StringVar(out, "out", "", "`FILE` for the bundle, which must not exist (default "+byDefault+")")
}

// shown is a secret that is meant to be seen, once, by whoever asked for it.
type shown transport.Sensitive

// MarshalJSON writes it as a string; a passphrase has nothing to escape.
func (s shown) MarshalJSON() ([]byte, error) {
	if !json.Valid([]byte(`"` + string(s) + `"`)) {
		return nil, errors.New("passphrase cannot be shown")
	}
	return append(append([]byte{'"'}, s...), '"'), nil
}

// made is what a verb that makes a bundle prints.
type made struct {
	Kind       transport.BundleKind `json:"kind"`
	Terminal   transport.Name       `json:"terminal,omitempty"`
	Service    transport.Name       `json:"service,omitempty"`
	Group      transport.Name       `json:"group"`
	Attest     bool                 `json:"attest,omitempty"`
	Bundle     string               `json:"bundle"`
	Passphrase shown                `json:"passphrase"`
	Notes      []string             `json:"notes,omitempty"`
}

// makeBundle asks the server for a bundle and puts it at path, for its owner's
// eyes only. The file is reserved before the server is asked, so that nothing
// is changed there for a bundle that has no place here.
func makeBundle(cmd *cobra.Command, method, path string, params func(replyKey string) any) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return control.Problemf(control.Conflict, "move it away, or choose another file with --out", "%s exists already", path)
	}
	if err != nil {
		return control.Problemf(control.BadInput, "choose another file with --out", "cannot write the bundle: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(path)
		}
	}()
	reader, err := control.NewReader()
	if err != nil {
		return err
	}
	var reply server.BundleReply
	if err := ask(cmd, method, params(reader.Key()), &reply); err != nil {
		return err
	}
	passphrase, err := reader.Open(server.PassphraseLabel, reply.Passphrase)
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	if err := hsm.WriteFile(path, reply.Bundle, 0o600); err != nil {
		return control.Problemf(control.Storage, "free space, then make it anew with: kagimori-server terminal reenroll (for a spare: spare add)",
			"the bundle was made and cannot be kept: %w", err)
	}
	m := made{Kind: reply.Kind, Terminal: reply.Terminal, Service: reply.Service, Group: reply.Group, Attest: reply.Attest, Bundle: path, Passphrase: shown(passphrase), Notes: reply.Notes}
	return verb.Print(cmd, m, func(w io.Writer) {
		fields := []any{"bundle", path}
		if m.Terminal != "" {
			fields = append([]any{"terminal", m.Terminal}, fields...)
		}
		verb.Fields(w, append(fields, "passphrase", string(passphrase))...)
		for _, n := range m.Notes {
			fmt.Fprintf(w, "\nNote: %s.\n", n)
		}
		fmt.Fprintf(w, "\nThe passphrase is shown this once and kept nowhere. On the device: %s provision %s\n", programOf(m.Kind), filepath.Base(path))
	})
}

func programOf(kind transport.BundleKind) string {
	if kind == transport.BundleGate {
		return "kagimori-gate"
	}
	return "kagimori"
}
