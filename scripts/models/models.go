// Package models runs the formal models of docs/models, and lends what they found
// to tests of the code: which durable states the two ends of a key copy reach.
package models

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A Tuple is what is on the disks of both ends at one moment of a transaction.
// The words are those of docs/models/states-*.txt. The copied keys are there in
// a mixed transaction only.
type Tuple struct {
	Source       string // idle offered committed done reclaimed dead
	SourceKey    string // none disabled active
	SourceCopied string
	Target       string // idle started staged active closed kept dead
	TargetKey    string
	TargetCopied string
	// Same says whether both ends' records are of one transaction; false when
	// an end has none.
	Same bool
}

// String is the tuple's line in the files.
func (t Tuple) String() string {
	words := []string{t.Source, t.SourceKey, t.SourceCopied, t.Target, t.TargetKey, t.TargetCopied, "-"}
	if t.Same {
		words[len(words)-1] = "same"
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

// Read parses a file of tuples, one on a line; lines that begin with # are for people.
func Read(r io.Reader) (map[Tuple]bool, error) {
	all := map[Tuple]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		w := strings.Fields(line)
		if len(w) == 5 { // one kind of item
			w = []string{w[0], w[1], "", w[2], w[3], "", w[4]}
		}
		if len(w) != 7 || w[6] != "same" && w[6] != "-" {
			return nil, fmt.Errorf("states of the model: %q is no tuple", line)
		}
		all[Tuple{w[0], w[1], w[2], w[3], w[4], w[5], w[6] == "same"}] = true
	}
	return all, lines.Err()
}

// Write is the other direction, sorted.
func Write(w io.Writer, all map[Tuple]bool) error {
	lines := make([]string, 0, len(all))
	for t := range all {
		lines = append(lines, t.String())
	}
	slices.Sort(lines)
	_, err := fmt.Fprintf(w, "# Source, its keys, Target, its keys, records of the same transaction.\n# Written by go test ./scripts/models -update\n%s\n", strings.Join(lines, "\n"))
	return err
}

// ReachedStates gives the tuples that the model of the transaction reaches, for
// a "copy", a "move", or a transaction in which one item is copied and one moves
// ("mixed"); with "-found", when ends that were taken for dead turn up. docs is the path of the folder docs. That the file is what the
// model says is shown by this package's own tests.
func ReachedStates(t *testing.T, docs, items string) map[Tuple]bool {
	t.Helper()
	name := "states-" + items + ".txt"
	f, err := os.Open(filepath.Join(docs, "models", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
