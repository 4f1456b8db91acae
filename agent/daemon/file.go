package daemon

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// A sealedFile is what verbs take in with a passphrase that opens it: a bundle,
// a recovery file.
type sealedFile struct {
	what  string // "bundle"
	label string // what its passphrase is sealed as, on the control socket
	limit int    // bytes
	next  string // which file to name
}

// take reads the file and its passphrase, and gives call the connection to the
// daemon, the file, and the passphrase as it crosses the socket.
func (s sealedFile) take(cmd *cobra.Command, path string, call func(c *control.Client, file []byte, passphrase string) error) error {
	file, err := s.read(path)
	if err != nil {
		return err
	}
	passphrase, err := verb.ReadSecret(cmd, "Passphrase: ")
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	sealed, err := c.Seal(cmd.Context(), s.label, passphrase)
	if err != nil {
		return err
	}
	return call(c, file, sealed)
}

func (s sealedFile) read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, control.Problemf(control.BadInput, "run it with sudo, or as the user whose file it is", "%w", err)
	}
	if err != nil {
		return nil, control.Problemf(control.BadInput, s.next, "%w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(s.limit)+1))
	if err != nil {
		return nil, control.Problemf(control.BadInput, "copy the file again from where it was made", "read %s: %w", s.what, err)
	}
	if len(data) > s.limit {
		return nil, control.Problemf(control.BadInput, s.next, "%s is too large for a %s", path, s.what)
	}
	return data, nil
}
