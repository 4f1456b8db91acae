package stories

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kagimori/kagimori/hsm/hsmtest"
)

// An emulator is a whole 32-bit ARM board: Debian's kernel, the shipped agent, a
// disk, and two TPMs behind the kernel's own driver and resource manager. Process
// 1 on it is scripts/board.
type emulator struct {
	t                     *testing.T
	dir                   string
	chips                 [2]*hsmtest.TPM
	kernel, initrd, image string

	console *lockedBuffer
	story   net.Conn
	lines   *bufio.Reader
	cut     func() // the power
}

// newEmulator builds the board and does not switch it on.
func newEmulator(t *testing.T) *emulator {
	t.Helper()
	need(t, "qemu-system-arm")
	e := &emulator{t: t, dir: newMachine(t, "board").dir, kernel: "../../bin/board/vmlinuz", console: new(lockedBuffer)}
	if _, err := os.Stat(e.kernel); err != nil {
		t.Fatalf("%v: run scripts/setup.sh soak", err)
	}
	e.chips = [2]*hsmtest.TPM{hsmtest.NewTPM(t), hsmtest.NewTPM(t)}
	if out, err := crossBuilt(); err != nil {
		t.Fatalf("build for the boards: %v\n%s", err, out)
	}
	build := func(name string, args ...string) string {
		path := filepath.Join(e.dir, name)
		c := exec.Command("go", append(append(args[:1:1], "-trimpath", "-ldflags=-s -w", "-o", path), args[1:]...)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm", "GOARM=7")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
		return path
	}
	var archive cpio
	for _, dir := range []string{"bin", "modules", "etc", "etc/kagimori"} {
		archive.add(dir, os.ModeDir|0o755, nil)
	}
	archive.file(t, "init", build("init", "build", "../board"))
	archive.file(t, "bin/kagimori", filepath.Join(bin, "kagimori-linux-armv7"))
	archive.file(t, "bin/tpm.test", build("tpm.test", "test", "-c", "../../hsm/tpm"))
	for i, path := range withNeeded(t, "../../bin/board/modules", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "crc32c_generic", "ext4", "tpm_vtpm_proxy") {
		archive.file(t, fmt.Sprintf("modules/%02d-%s", i, filepath.Base(path)), path)
	}
	archive.add("etc/kagimori/agent.toml", 0o644, []byte("[hsm]\nkind = \"tpm\"\n[link]\nmax_backoff = \"1s\"\n"))
	e.initrd, e.image = filepath.Join(e.dir, "initrd"), filepath.Join(e.dir, "disk")
	if err := os.WriteFile(e.initrd, archive.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(e.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(need(t, "mkfs.ext4"), "-q", e.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if e.cut != nil {
			e.cut()
		}
		if t.Failed() {
			t.Logf("--- console\n%s", e.console)
		}
	})
	return e
}

// boot switches the board on and waits until it takes orders.
func (e *emulator) boot() {
	e.t.Helper()
	path := filepath.Join(e.dir, "story")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15", "-smp", "2", "-m", "1024", "-nographic", "-no-reboot",
		"-monitor", "none", "-serial", "stdio", "-kernel", e.kernel, "-initrd", e.initrd, "-append", "console=ttyAMA0 quiet panic=-1",
		"-drive", "if=none,id=disk,format=raw,file="+e.image, "-device", "virtio-blk-device,drive=disk",
		"-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net", "-device", "virtio-serial-device",
		"-chardev", "socket,id=tpm0,path="+e.chips[0].Socket, "-device", "virtserialport,chardev=tpm0,name=tpm0",
		"-chardev", "socket,id=tpm1,path="+e.chips[1].Socket, "-device", "virtserialport,chardev=tpm1,name=tpm1",
		"-chardev", "socket,id=story,path="+path, "-device", "virtserialport,chardev=story,name=story")
	cmd.Stdout, cmd.Stderr = e.console, e.console
	ended := startBound(e.t, cmd)
	e.cut = func() {
		cmd.Process.Kill()
		<-ended
		if e.story != nil {
			e.story.Close()
		}
		e.cut = nil
	}
	if e.story, err = l.Accept(); err != nil {
		e.t.Fatal(err)
	}
	e.lines = bufio.NewReader(e.story)
	if r := e.run(9*patience, "", nil, "/bin/kagimori", "version"); r.code != 0 {
		e.t.Fatalf("the board does not come up: %+v\n%s", r, e.console)
	}
}

// powerCut takes the power away from board and chips, and gives it back to the chips.
func (e *emulator) powerCut() {
	e.t.Helper()
	e.cut()
	for _, c := range e.chips {
		c.Kill()
		c.Start()
	}
}

// run runs a program on the board.
func (e *emulator) run(limit time.Duration, stdin string, env []string, argv ...string) result {
	e.t.Helper()
	return e.order(limit, map[string]any{"argv": argv, "env": env, "stdin": stdin, "seconds": int(limit.Seconds())})
}

// launch starts a program on the board and leaves it running.
func (e *emulator) launch(argv ...string) {
	e.t.Helper()
	if r := e.order(patience, map[string]any{"argv": argv, "background": true}); r.code != 0 {
		e.t.Fatalf("%v: %s", argv, r.err)
	}
}

// put writes a file on the board.
func (e *emulator) put(path string, content []byte) {
	e.t.Helper()
	if r := e.order(patience, map[string]any{"put": path, "content": content}); r.code != 0 {
		e.t.Fatalf("write %s: %s", path, r.err)
	}
}

func (e *emulator) order(limit time.Duration, order map[string]any) result {
	e.t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		e.t.Fatal(err)
	}
	e.story.SetDeadline(time.Now().Add(limit + patience))
	var line []byte
	if _, err = e.story.Write(append(text, '\n')); err == nil {
		line, err = e.lines.ReadBytes('\n')
	}
	var r struct {
		Out, Err string
		Code     int
	}
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		e.t.Fatalf("%v on the board: %v\n%s", order["argv"], err, e.console)
	}
	return result{r.Out, r.Err, r.Code}
}

// verb runs a verb of the agent that must succeed.
func (e *emulator) verb(stdin string, args ...string) string {
	e.t.Helper()
	r := e.run(4*patience, stdin, nil, append([]string{"/bin/kagimori"}, args...)...)
	if r.code != 0 {
		e.t.Fatalf("kagimori %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// until waits for a condition on the board.
func (e *emulator) until(what string, ok func() bool) {
	e.t.Helper()
	(&machine{t: e.t, name: "board", cpu: "armv7"}).until(what, ok)
}
