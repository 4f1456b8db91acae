package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestKinds(t *testing.T) {
	codes := map[int]bool{}
	for _, k := range Kinds() {
		if codes[k.Exit] || k.Exit < 1 || k.Meaning == "" || k.Kind.Exit() != k.Exit {
			t.Errorf("%+v", k)
		}
		codes[k.Exit] = true
	}
	if len(codes) != 10 {
		t.Errorf("%d kinds; the list only grows", len(codes))
	}
	if Kind("of a newer daemon").Exit() != 1 {
		t.Error("an unknown kind is not internal")
	}
}

type explained struct{}

func (explained) Error() string       { return "agent.toml:3: wrong" }
func (explained) ProblemKind() string { return "config" }
func (explained) NextStep() string    { return "correct it" }

func TestAsProblem(t *testing.T) {
	if AsProblem(nil) != nil {
		t.Error("nil is a problem")
	}
	p := Problemf(Conflict, "do that", "open store: %w", fs.ErrExist)
	for _, c := range []struct {
		err  error
		kind Kind
		text string
		next string
	}{
		{p, Conflict, "open store: file already exists", "do that"},
		{fmt.Errorf("start: %w", p), Conflict, "start: open store: file already exists", "do that"},
		{fmt.Errorf("load: %w", explained{}), Config, "load: agent.toml:3: wrong", "correct it"},
		{errors.New("x"), Internal, "x", ""},
		{fmt.Errorf("ask: %w", context.Canceled), Interrupted, "ask: context canceled", ""},
		{context.DeadlineExceeded, Unavailable, "context deadline exceeded", ""},
	} {
		got := AsProblem(c.err)
		if got.Kind != c.kind || got.Message != c.text || got.Next != c.next {
			t.Errorf("%v: %+v", c.err, got)
		}
		if !errors.Is(got, c.err) && !errors.Is(got, fs.ErrExist) {
			t.Errorf("%v is lost", c.err)
		}
	}
	if !errors.Is(fmt.Errorf("x: %w", p), &Problem{Kind: Conflict}) || errors.Is(p, &Problem{Kind: NotFound}) {
		t.Error("errors.Is by kind")
	}
}
