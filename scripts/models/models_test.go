package models

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

const docs = "../../docs"

// The properties that each model states, by the names they have there.
var (
	ofTransaction = []string{"one_active", "never_lost", "one_effect", "receipt_true", "offer_first", "closed_true",
		"same_transaction", "source_code", "target_code", "finishes"}
	// What last resorts, and the word they rest on, can do to.
	ofFound    = []string{"one_active", "never_lost", "conflict_said", "finishes"}
	ofAttempts = []string{"three_per_code", "nine_then_locks", "thirteen_a_day", "count_first"}
)

func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: run scripts/setup.sh", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// verifier makes Spin's checker for one model in a folder of its own. The model
// is read here and not by the child, so that the test cache sees it.
func verifier(t *testing.T, model string, defines ...string) (dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, "models", model))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, d := range defines {
		if !slices.Contains([]string{"MOVE", "MIXED", "FOUND", "TARGET"}, d) && !regexp.MustCompile(`(?m)^#ifn?def `+d+`\b`).Match(text) {
			t.Fatalf("%s knows no %s", model, d)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, model), text, 0o600); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, d := range defines {
		args = append(args, "-D"+d)
	}
	tool(t, dir, "spin", append(args, "-a", model)...)
	// Without the reduction of orders every reached tuple is seen, not only what the properties need.
	tool(t, dir, "gcc", "-O0", "-w", "-DPRINTF", "-DNOFAIR", "-DNOREDUCE", "-o", "pan", "pan.c")
	return dir
}

var (
	summary = regexp.MustCompile(`errors: (\d+)`)
	stored  = regexp.MustCompile(`(\d+) states, stored`)
	deep    = regexp.MustCompile(`depth reached (\d+)`)
)

// holds runs one property. Whether the search was whole matters only if it does.
func holds(t *testing.T, dir, property string) (ok bool, output string) {
	t.Helper()
	out := tool(t, dir, filepath.Join(dir, "pan"), "-a", "-m100000", "-w18", "-N", property)
	m := summary.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "cannot find claim") {
		t.Fatalf("%s: pan gave no verdict:\n%s", property, tail(out))
	}
	if m[1] != "0" {
		return false, out
	}
	if strings.Contains(out, "max search depth too small") || strings.Contains(out, "Search not completed") {
		t.Fatalf("%s: the search was not whole:\n%s", property, tail(out))
	}
	return true, out
}

func tail(out string) string {
	return out[max(0, len(out)-2000):]
}

func runAll(t *testing.T, dir string, properties []string) (last string) {
	t.Helper()
	for _, p := range properties {
		ok, out := holds(t, dir, p)
		if !ok {
			t.Errorf("%s does not hold:\n%s", p, tail(out))
			continue
		}
		t.Logf("%s: %s states, depth %s", p, stored.FindStringSubmatch(out)[1], deep.FindStringSubmatch(out)[1])
		if p == properties[0] {
			last = out
		}
	}
	return last
}

// req: C5, C9
func TestTransactionHolds(t *testing.T) {
	for name, defines := range map[string][]string{
		"copy": nil, "move": {"MOVE"}, "mixed": {"MOVE", "MIXED"},
		"copy-found": {"FOUND"}, "move-found": {"MOVE", "FOUND"}, "mixed-found": {"MOVE", "MIXED", "FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			properties := ofTransaction
			if slices.Contains(defines, "FOUND") {
				properties = ofFound
			}
			out := runAll(t, verifier(t, "transaction.pml", defines...), properties)
			got := reached(t, out, name)
			path := filepath.Join(docs, "models", "states-"+name+".txt")
			if *update {
				var b bytes.Buffer
				if err := Write(&b, got); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := ReachedStates(t, docs, name); !maps.Equal(got, want) {
				t.Errorf("%s is not what the model reaches (%d tuples, file has %d): run with -update and read the difference", path, len(got), len(want))
			}
			t.Logf("%d durable tuples", len(got))
			for _, must := range ends(name) { // that nothing fails is worth little where nothing happens
				if !got[must] {
					t.Errorf("the model never gets to: %v", must)
				}
			}
		})
	}
}

// ends are the tuples in which runs end, and those of the last resorts.
func ends(items string) (all []Tuple) {
	text := map[string]string{
		"copy": `done active closed active same
			idle active kept active -
			dead none staged active -
			done active dead none -`,
		"move": `done none closed active same
			reclaimed active dead none -
			dead none active active -
			idle active staged disabled -
			committed disabled active active same`,
		"mixed": `done none active closed active active same
			reclaimed active active dead none none -
			idle active active kept none active -
			committed disabled active staged disabled active same`,
		"copy-found": `done active closed active same
			offered active kept active same`,
		"move-found": `done none closed active same
			reclaimed active kept active same
			reclaimed active idle none -
			offered active active active same`,
		"mixed-found": `reclaimed active active kept none active same`,
	}[items]
	tuples, err := Read(strings.NewReader(strings.ReplaceAll(text, "\t", "")))
	if err != nil {
		panic(err)
	}
	return slices.Collect(maps.Keys(tuples))
}

// reached reads what the model printed.
func reached(t *testing.T, out, items string) map[Tuple]bool {
	t.Helper()
	source := map[int]string{0: "idle", 1: "offered", 2: "committed", 3: "done", 4: "reclaimed", 9: "dead"}
	target := map[int]string{0: "idle", 1: "started", 2: "staged", 3: "active", 4: "closed", 5: "kept", 9: "dead"}
	key := map[int]string{0: "none", 1: "disabled", 2: "active"}
	all := map[Tuple]bool{}
	for line := range strings.Lines(out) {
		_, numbers, ok := strings.Cut(line, "REACHED ")
		if !ok {
			continue
		}
		var s, sk, sc, g, gk, gc, same int
		if _, err := fmt.Sscan(numbers, &s, &sk, &sc, &g, &gk, &gc, &same); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		tuple := Tuple{source[s], key[sk], key[sc], target[g], key[gk], key[gc], same == 1}
		if tuple.Source == "" || tuple.SourceKey == "" || tuple.Target == "" || tuple.TargetKey == "" {
			t.Fatalf("%q: no such state", line)
		}
		if !strings.HasPrefix(items, "mixed") {
			tuple.SourceCopied, tuple.TargetCopied = "", ""
		}
		all[tuple] = true
	}
	return all
}

// req: C3
func TestAttemptsHold(t *testing.T) {
	for name, defines := range map[string][]string{"source": nil, "target": {"TARGET"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runAll(t, verifier(t, "attempts.pml", defines...), ofAttempts)
		})
	}
}

// A model that finds no mistake shows nothing: each of these is found by the
// property that is there for it.
func TestMistakesAreFound(t *testing.T) {
	for _, m := range []struct{ model, mutant, in, property string }{
		{"transaction.pml", "RECEIPT_BEFORE_STAGED", "MOVE", "receipt_true"},
		{"transaction.pml", "RECEIPT_BEFORE_STAGED", "", "receipt_true"},
		{"transaction.pml", "COMMIT_BEFORE_COMMITTED", "MOVE", "one_active"},
		{"transaction.pml", "COMMIT_BEFORE_COMMITTED", "", "closed_true"}, // in a copy: CLOSE before DONE
		{"transaction.pml", "ACTIVE_AT_STAGED", "MOVE", "one_active"},
		{"transaction.pml", "ITEM_BEFORE_OFFERED", "MOVE", "offer_first"},
		{"transaction.pml", "ITEM_BEFORE_OFFERED", "", "offer_first"},
		{"transaction.pml", "DESTROY_AT_COMMITTED", "MOVE", "never_lost"},
		{"transaction.pml", "CLOSE_BEFORE_DONE", "MOVE", "finishes"},
		{"transaction.pml", "RECLAIM_WHILE_TARGET_LIVES", "MOVE", "one_active"},
		{"transaction.pml", "ACTIVATE_WHILE_SOURCE_LIVES", "MOVE", "one_active"},
		{"transaction.pml", "CONFLICT_UNSAID", "FOUND", "conflict_said"},
		{"transaction.pml", "ANY_RECORD", "MOVE", "same_transaction"},
		{"transaction.pml", "ANY_RECORD", "", "same_transaction"},
		{"transaction.pml", "RECEIPT_TWICE", "MOVE", "one_effect"},
		{"transaction.pml", "SOURCE_CODE_AT_GRANT", "", "source_code"},
		{"transaction.pml", "TARGET_CODE_AT_STARTED", "", "target_code"},
		{"attempts.pml", "COUNT_AFTER_VERDICT", "", "nine_then_locks"},
		{"attempts.pml", "COUNT_AFTER_VERDICT", "TARGET", "three_per_code"},
		{"attempts.pml", "COUNT_IN_RAM", "", "thirteen_a_day"},
		{"attempts.pml", "COUNT_IN_RAM", "TARGET", "three_per_code"},
		{"attempts.pml", "RESET_AT_ARM", "", "nine_then_locks"},
		{"attempts.pml", "LOCK_NOT_CHECKED", "", "nine_then_locks"},
		{"attempts.pml", "TWO_AT_ONCE", "", "three_per_code"},
		{"attempts.pml", "CODE_SURVIVES", "", "three_per_code"},
	} {
		t.Run(m.mutant+m.in+"/"+m.property, func(t *testing.T) {
			t.Parallel()
			defines := []string{"MUTANT_" + m.mutant}
			if m.in != "" {
				defines = append(defines, m.in)
			}
			if m.in == "FOUND" {
				defines = append(defines, "MOVE")
			}
			ok, out := holds(t, verifier(t, m.model, defines...), m.property)
			if ok {
				t.Fatalf("%s does not notice", m.property)
			}
			if m.property == "finishes" != strings.Contains(out, "acceptance cycle") {
				t.Errorf("noticed by something else:\n%s", tail(out))
			}
		})
	}
}
