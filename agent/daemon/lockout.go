package daemon

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/agent"
	"github.com/kagimori/kagimori/transport/control/verb"
)

// What is sane for a machine that nobody sits at.
const (
	usualTries    = 32
	usualRecovery = 2 * time.Hour
	usualReset    = 24 * time.Hour
)

const lockoutPassword = `The lockout password is read from the terminal without echo, or else as one line
of standard input. With --no-password it is the empty one, which a TPM has until
somebody sets another. It is tried once: a wrong one locks it for the time that
"tpm show" names.`

func (p Program) setLockout() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set-lockout", Short: "Set after how many wrong tries the TPM locks, and for how long",
		Long: `Sets the TPM's guard against guessing: after how many wrong PINs and passwords it
locks, after how long one of them is forgotten, and for how long a wrong lockout
password locks resetting. The defaults suit a machine that nobody sits at.

` + lockoutPassword,
		Example: fmt.Sprintf("  sudo %[1]s tpm set-lockout\n  sudo %[1]s tpm set-lockout --tries 10 --recovery 10m --no-password", p.Name),
	}
	tries := cmd.Flags().Int64("tries", usualTries, "wrong tries after which it locks")
	recovery := cmd.Flags().Duration("recovery", usualRecovery, "time after which one wrong try is forgotten")
	reset := cmd.Flags().Duration("reset", usualReset, "time for which a wrong lockout password locks resetting")
	empty := noPassword(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := agent.LockoutParams{Limit: *tries, Recovery: int64(*recovery / time.Second), Reset: int64(*reset / time.Second)}
		return p.lockout(cmd, *empty, "LockoutSet", in, fmt.Sprintf("the TPM locks after %d wrong tries and forgets one every %s", *tries, *recovery))
	}
	return cmd
}

func (p Program) resetLockout() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reset-lockout", Short: "Make the TPM forget wrong tries",
		Long:    "Ends a lockout of the TPM, and sets its counter of wrong tries to zero. Find out\nfirst who guessed.\n\n" + lockoutPassword,
		Example: fmt.Sprintf("  sudo %[1]s tpm reset-lockout", p.Name),
	}
	empty := noPassword(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return p.lockout(cmd, *empty, "LockoutReset", agent.LockoutParams{}, "the TPM has forgotten the wrong tries")
	}
	return cmd
}

func noPassword(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("no-password", false, "the TPM has no lockout password")
}

// lockout asks for the password and has the daemon use it once.
func (p Program) lockout(cmd *cobra.Command, empty bool, method string, in agent.LockoutParams, done string) error {
	c, err := verb.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	if !empty {
		password, err := verb.ReadSecret(cmd, "Lockout password: ")
		if err != nil {
			return err
		}
		defer password.Wipe()
		if in.Password, err = c.Seal(cmd.Context(), agent.LabelLockout, password); err != nil {
			return err
		}
	}
	if err := c.Call(cmd.Context(), p.Interface+"."+method, in, nil); err != nil {
		return err
	}
	return verb.Print(cmd, struct{}{}, func(w io.Writer) { fmt.Fprintln(w, done) })
}
