package stories

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/open"
	"github.com/kagimori/kagimori/server"
	"github.com/kagimori/kagimori/server/store"
	"github.com/kagimori/kagimori/transport"
	"github.com/kagimori/kagimori/transport/control"
)

// A thousand keys go over in one run, under one code, with one receipt: in little
// time, in the memory that the unit gives, and without a flood of progress.
//
// req: C8
func TestSoakThousandKeys(t *testing.T) {
	if os.Getenv("KAGIMORI_SOAK") == "" {
		t.Skip("issuing a thousand keys takes minutes: KAGIMORI_SOAK=1")
	}
	const n = 1000
	d := newDeployment(t, nil)
	old, fresh := d.terminal("nav-001", sealedFile), d.terminal("nav-002", sealedFile)
	old.named()
	fresh.spare()
	d.services(n)
	old.connected()
	issue(t, d, n)
	held := func(m *terminal) int {
		return strings.Count(m.verb("", "kagimori", "credential", "list", "--json"), `"id": "cr-`)
	}
	for have := 0; have < n; {
		old.until("the old terminal gets more keys", func() bool {
			before := have
			have = held(old)
			return have > before
		})
	}

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

// services gives the deployment n services. Each `gate add` seals a bundle, which
// takes long on purpose; here they go in while the server is off.
func (d *deployment) services(n int) {
	d.t.Helper()
	d.serverRun.stop()
	dir, log := d.server.state(), slog.New(slog.DiscardHandler)
	module, err := open.Module(d.t.Context(), open.Config{Kind: open.KindFile, Path: filepath.Join(dir, "device.secret"), Dir: dir}, log)
	if err != nil {
		d.t.Fatal(err)
	}
	defer module.Close()
	s, err := store.Open(d.t.Context(), dir, module, log)
	if err != nil {
		d.t.Fatal(err)
	}
	err = s.Update(d.t.Context(), store.By{Actor: "story", At: time.Now()}, func(tx *store.Tx) error {
		for i := range n {
			name := fmt.Sprintf("maps-%d", i)
			if err := tx.AddService(store.Service{Name: transport.Name(name), Gate: "gate-maps", DNS: []string{name + ".test"}, Endpoints: []string{d.door}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	s.Close()
	d.serve()
}

// issue orders a credential of nav-001 for each of the n services.
func issue(t *testing.T, d *deployment, n int) {
	t.Helper()
	c, err := control.Dial(t.Context(), d.server.socket("kagimori-server"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range n {
		in := server.CredentialIssueParams{Terminal: "nav-001", Service: fmt.Sprintf("maps-%d", i)}
		if err := c.Stream(t.Context(), "com.kagimori.server.CredentialIssue", in, func(json.RawMessage) error { return nil }); err != nil {
			t.Fatal(err)
		}
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
