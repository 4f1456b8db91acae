package stories

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// A thousand keys go over in one run, under one code, with one receipt: in little
// time, in the memory that the unit gives, and without a flood of progress.
//
// req: C8
func TestThousandKeys(t *testing.T) {
	const n = 1000
	d := newDeployment(t, nil)
	old, fresh := d.terminal("nav-001", sealedFile), d.terminal("nav-002", sealedFile)
	old.named()
	fresh.spare()
	var issuing sync.WaitGroup
	for part := range 8 {
		issuing.Go(func() {
			for i := part; i < n; i += 8 {
				if r := d.server.run("", "kagimori-server", "--socket", d.server.socket("kagimori-server"), "credential", "issue", "nav-001", "--service", fmt.Sprintf("maps-%d", i)); r.code != 0 {
					t.Errorf("exit %d: %s", r.code, r.err)
				}
			}
		})
	}
	issuing.Wait()
	held := func(m *terminal) int {
		return strings.Count(m.verb("", "kagimori", "credential", "list", "--json"), `"id": "cr-`)
	}
	old.until("the old terminal holds them", func() bool { return held(old) == n })

	o := old.offer(old.socket("kagimori"))
	if shown := strings.Count(o.log.String(), "(service maps-"); shown > 100 || !strings.Contains(o.log.String(), fmt.Sprintf("%d in all", n)) {
		t.Errorf("%d keys are shown before the code:\n%s", shown, o.log)
	}
	start := time.Now()
	out := fresh.verb(o.code+"\n", "kagimori", "keycopy", "fetch", old.copy, "--json")
	took := time.Since(start)
	<-o.done
	if lines := strings.Count(o.log.String(), "\n"); lines > 200 {
		t.Errorf("the old terminal's log has %d lines", lines)
	}
	judgeThousand(t, out, n)
	if got := held(fresh); got != n {
		t.Errorf("the new terminal holds %d keys", got)
	}
	from, to := peak(t, old.daemon.cmd.Process.Pid), peak(t, fresh.daemon.cmd.Process.Pid)
	t.Logf("%d keys in %v; most memory: old terminal %d MiB, new terminal %d MiB", n, took.Round(time.Millisecond), from>>10, to>>10)
	if took > 30*time.Second || from > 64<<10 || to > 64<<10 { // MemoryMax of the unit
		t.Errorf("%v, %d KiB, %d KiB", took, from, to)
	}
}

// judgeThousand looks at what programs are told: each key once, progress a
// hundred times.
func judgeThousand(t *testing.T, out string, n int) {
	t.Helper()
	keys, items, last := map[string]bool{}, 0, ""
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var ev struct {
			Step string
			Keys []struct{ Credential string }
		}
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			t.Fatalf("%v in %s", err, lines.Text())
		}
		switch last = ev.Step; ev.Step {
		case "item":
			items++
		case "listed", "closed":
			for _, k := range ev.Keys {
				if keys[k.Credential] {
					t.Errorf("%s is listed twice", k.Credential)
				}
				keys[k.Credential] = true
			}
		}
	}
	if last != "closed" || len(keys) != n || items < 50 || items > 110 {
		t.Errorf("%d keys listed, %d steps of progress, the last event is %s", len(keys), items, last)
	}
}

// peak is the most memory that a process has had resident, in KiB.
func peak(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if n, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil && n == 1 {
			return kib
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
