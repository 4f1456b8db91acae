package store

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Reads what strace saw a daemon do to the files below a directory.

// An event is one system call that changes something, or an acknowledgement.
type event struct {
	op   string // write, truncate, copy, create, mkdir, rename, unlink, sync, ack
	path string // below the directory; "" is the directory itself
	to   string // rename: the new name; copy: the file that is written
	at   int64  // write, copy: offset in the file that is written
	from int64  // copy: offset in path
	n    int64  // truncate: the size; copy: how many bytes
	data []byte // write; ack: the line
}

// String says which system call an event is, for people.
func (e event) String() string {
	switch e.op {
	case "rename", "copy":
		return fmt.Sprintf("%s %s %s", e.op, e.path, e.to)
	case "ack":
		return fmt.Sprintf("ack %q", e.data)
	}
	return e.op + " " + e.path
}

// gone is what strace writes behind an open file that has lost its name.
const gone = "(deleted)"

// traced are the system calls that a store may change the disk with. One of
// them that the parser does not know fails the test.
const traced = "openat,openat2,open,creat,mkdirat,mkdir,write,writev,pwrite64,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice," +
	"sync,syncfs,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat"

// trace runs the daemon to its end and returns what it did.
func (d crashDaemon) trace(t *testing.T) []event {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing: run scripts/setup.sh")
	}
	log := filepath.Join(quickDir(t), "strace")
	cmd := exec.Command("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "4194304", "-e", "signal=none", "-e", "trace="+traced, "-o", log, os.Args[0], "-test.run=^$")
	cmd.Env = d.env()
	out, err := os.Create(filepath.Join(filepath.Dir(log), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, t.Output()
	if err := cmd.Run(); err != nil {
		t.Fatalf("strace: %v", err)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	events, err := parseTrace(f, d.dir)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// A tracer turns lines into events.
type tracer struct {
	dir    string
	begun  map[string]string // by thread: a call that has not returned
	pos    map[string]int64  // by open file: where write goes on
	events []event
}

var (
	reResult = regexp.MustCompile(`^ *= (-?\d+|\?)(?:<([^>]*)>)?`)
	reFile   = regexp.MustCompile(`^(\d+)<([^>]*)>`)
)

func parseTrace(r io.Reader, dir string) ([]event, error) {
	tr := &tracer{dir: dir, begun: map[string]string{}, pos: map[string]int64{}}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		thread, text, _ := strings.Cut(sc.Text(), " ")
		text = strings.TrimLeft(text, " ")
		if head, cut := strings.CutSuffix(text, " <unfinished ...>"); cut {
			tr.begun[thread] = head
			// An acknowledgement counts from its first moment.
			if strings.HasPrefix(head, "write(1<") {
				if err := tr.line(head + ") = 0"); err != nil {
					return nil, err
				}
			}
			continue
		}
		if strings.HasPrefix(text, "<... ") {
			_, rest, _ := strings.Cut(text, " resumed>")
			text = tr.begun[thread] + rest
			if strings.HasPrefix(text, "write(1<") {
				continue
			}
		}
		if err := tr.line(text); err != nil {
			return nil, fmt.Errorf("%w in %.200q", err, text)
		}
	}
	return tr.events, sc.Err()
}

func (tr *tracer) line(text string) error {
	call, rest, isCall := strings.Cut(text, "(")
	end := strings.LastIndexByte(rest, ')')
	if strings.HasSuffix(rest, ")") { // "= -1 ENOENT (No such file or directory)"
		return nil
	}
	if !isCall || end < 0 {
		return nil // +++ exited with 0 +++
	}
	result := reResult.FindStringSubmatch(rest[end+1:])
	if result == nil {
		return fmt.Errorf("no result")
	}
	if strings.HasPrefix(result[1], "-") || result[1] == "?" {
		return nil // it failed and changed nothing
	}
	ret, err := strconv.ParseInt(result[1], 10, 64)
	if err != nil {
		return err
	}
	args := strings.Split(rest[:end], ", ")
	switch call {
	case "openat", "mkdirat", "mkdir", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir":
		return tr.name(call, args, result[1]+"<"+result[2]+">")
	}
	file := reFile.FindStringSubmatch(args[0])
	if file == nil {
		return fmt.Errorf("no open file")
	}
	if call == "write" && file[1] == "1" {
		line, err := unhex(args[1])
		tr.events = append(tr.events, event{op: "ack", data: line})
		return err
	}
	path, inside, err := tr.below(file[2])
	if err != nil || !inside && call != "copy_file_range" {
		return err
	}
	if strings.HasSuffix(args[0], ">"+gone) {
		path += gone
	}
	return tr.file(call, args, path, ret)
}

// name is a call that changes a directory.
func (tr *tracer) name(call string, args []string, opened string) error {
	var paths []string
	for _, a := range args {
		if !strings.HasPrefix(a, `"`) {
			continue
		}
		raw, err := unhex(a)
		if err != nil {
			return err
		}
		path, inside, err := tr.below(hex.EncodeToString(raw))
		if err != nil {
			return err
		}
		if !inside {
			return nil
		}
		paths = append(paths, path)
	}
	flags := args[len(args)-1]
	switch {
	case call == "openat":
		flags = args[2]
		tr.pos[opened] = 0
		if strings.Contains(flags, "O_APPEND") || strings.Contains(flags, "O_TMPFILE") {
			return fmt.Errorf("flags %s are not understood", flags)
		}
		if strings.Contains(flags, "O_CREAT") {
			tr.events = append(tr.events, event{op: "create", path: paths[0]})
		}
		if strings.Contains(flags, "O_TRUNC") {
			tr.events = append(tr.events, event{op: "truncate", path: paths[0]})
		}
	case strings.HasPrefix(call, "mkdir"):
		tr.events = append(tr.events, event{op: "mkdir", path: paths[0]})
	case strings.HasPrefix(call, "rename"):
		if len(paths) != 2 || strings.Contains(flags, "EXCHANGE") {
			return fmt.Errorf("a move into or out of the directory, or an exchange")
		}
		tr.events = append(tr.events, event{op: "rename", path: paths[0], to: paths[1]})
	default:
		tr.events = append(tr.events, event{op: "unlink", path: paths[0]})
	}
	return nil
}

// file is a call on an open file.
func (tr *tracer) file(call string, args []string, path string, ret int64) (err error) {
	e := event{op: "write", path: path}
	last := args[len(args)-1]
	switch call {
	case "write":
		e.at, tr.pos[args[0]] = tr.pos[args[0]], tr.pos[args[0]]+ret
		e.data, err = unhex(args[1])
	case "pwrite64":
		e.at, _ = strconv.ParseInt(last, 10, 64)
		e.data, err = unhex(args[1])
	case "lseek":
		tr.pos[args[0]] = ret
		return nil
	case "ftruncate":
		e.op = "truncate"
		e.n, err = strconv.ParseInt(last, 10, 64)
	case "fsync", "fdatasync":
		e.op = "sync"
	case "copy_file_range":
		to := reFile.FindStringSubmatch(args[2])
		if to == nil || args[1] != "NULL" || args[3] != "NULL" {
			return fmt.Errorf("a copy that is not understood")
		}
		inside := false
		if e.to, inside, err = tr.below(to[2]); err != nil || !inside {
			return err
		}
		e.op, e.n, e.from, e.at = "copy", ret, tr.pos[args[0]], tr.pos[args[2]]
		tr.pos[args[0]] += ret
		tr.pos[args[2]] += ret
	default:
		return fmt.Errorf("%s is not understood", call)
	}
	if e.op == "write" {
		e.data = e.data[:ret] // what the kernel took
	}
	tr.events = append(tr.events, e)
	return err
}

// below cuts the directory off a path that strace printed in hex.
func (tr *tracer) below(hexPath string) (path string, inside bool, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(hexPath, `\x`, ""))
	if err != nil {
		return "", false, err
	}
	path = filepath.Clean(string(raw))
	if path == tr.dir {
		return "", true, nil
	}
	path, inside = strings.CutPrefix(path, tr.dir+"/")
	return path, inside, nil
}

func unhex(arg string) ([]byte, error) {
	return hex.DecodeString(strings.ReplaceAll(strings.Trim(arg, `"`), `\x`, ""))
}
