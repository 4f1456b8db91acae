package verb

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kagimori/kagimori/transport/control"
)

// Confirm explains on standard error what is about to happen and wants a "yes".
// Where nobody sits at a terminal it refuses: a script says --yes.
func Confirm(cmd *cobra.Command, explanation string) error {
	return ConfirmBy(cmd, explanation, "yes")
}

// ConfirmBy is Confirm for what is to be typed with care: word is not "yes" but
// what names the thing that is meant.
func ConfirmBy(cmd *cobra.Command, explanation, word string) error {
	const next = "read what it does with --help, then add --yes"
	if !onTerminal(cmd.InOrStdin()) {
		return control.Problemf(control.Usage, next, "%s", strings.TrimSpace(explanation))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s\nGo on? Type %s: ", strings.TrimSpace(explanation), word)
	answer, err := readLine(cmd.InOrStdin())
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(string(answer)) != word {
		return control.Problemf(control.Interrupted, "nothing was changed", "not confirmed")
	}
	return nil
}
