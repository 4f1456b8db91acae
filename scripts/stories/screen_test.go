package stories

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Nobody sits at a keyboard of either terminal: a program of the vehicle's screen
// talks to the agent's socket, on both sides.
//
// req: C2
func TestScreensOfBothTerminals(t *testing.T) {
	screen := filepath.Join(t.TempDir(), "screen")
	if out, err := exec.Command("go", "build", "-o", screen, "../screen").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := newDeployment(t, nil)
	old, fresh := d.terminal("nav-001", sealedFile), d.terminal("nav-002", sealedFile)
	old.named()
	id := old.issue()
	fresh.spare()

	offer := exec.Command(screen, old.socket("kagimori"), "offer")
	var log lockedBuffer
	offer.Stdout, offer.Stderr = &log, &log
	if err := offer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { offer.Process.Kill() })
	var code string
	old.until("the screen shows a code", func() bool {
		code = codePattern.FindString(log.String())
		return code != "" && strings.Contains(log.String(), "armed:")
	})
	invitation := regexp.MustCompile(`kagimori-keycopy:\S+`).FindString(log.String())
	if !strings.Contains(log.String(), "at ["+old.copy+"]") || invitation == "" {
		t.Errorf("the screen shows\n%s", log.String())
	}

	fetch := func(code, at string) (string, error) {
		c := exec.Command(screen, fresh.socket("kagimori"), "fetch", at)
		c.Stdin = strings.NewReader(code + "\n")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := fetch(code[:len(code)-1], invitation); err == nil || !strings.Contains(out, `"kind":"bad-input"`) || !strings.Contains(out, "cost no attempt") {
		t.Errorf("a digit too few: %v\n%s", err, out)
	}
	if out, err := fetch(code, invitation); err != nil || !strings.Contains(out, "100 %") || !strings.Contains(out, "closed: done: 1 key copied from") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := offer.Wait(); err != nil || !strings.Contains(log.String(), "closed: done: 1 key copied to") {
		t.Errorf("%v\n%s", err, log.String())
	}
	if got := fresh.curl("/a"); !strings.Contains(got, id) {
		t.Errorf("the service says %s", got)
	}
}
