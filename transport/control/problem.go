// The error that people see, its kinds and their exit codes.

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// A Kind is a class of problem that a script can branch on: by name in JSON,
// by exit code in a shell. The list only grows.
type Kind string

// What can go wrong. Kinds gives the exit code and meaning of each.
const (
	Internal    Kind = "internal"
	Usage       Kind = "usage"
	NotFound    Kind = "not-found"
	Refused     Kind = "refused"
	Unavailable Kind = "unavailable"
	Conflict    Kind = "conflict"
	BadInput    Kind = "bad-input"
	Storage     Kind = "storage"
	Config      Kind = "config"
	Interrupted Kind = "interrupted"
)

// KindInfo is one line of the table that the exit-codes help topic prints.
type KindInfo struct {
	Kind    Kind
	Exit    int
	Meaning string
}

// Kinds is the one table of kinds and exit codes, in the order of the codes. A
// crash of the Go runtime also leaves 2, with its own text on standard error.
func Kinds() []KindInfo {
	return []KindInfo{
		{Internal, 1, "something that should not happen; the message and the log say what"},
		{Usage, 2, "the command line is wrong: unknown verb or flag, missing argument"},
		{NotFound, 3, "nothing of that name exists"},
		{Refused, 4, "not allowed: by the caller's class, a wrong code, or the other side"},
		{Unavailable, 5, "not reachable or not ready now; the same command may work later"},
		{Conflict, 6, "it contradicts what is there: exists already, in use, other state"},
		{BadInput, 7, "a file, bundle, name or value that cannot be used"},
		{Storage, 8, "the key storage or the state directory cannot be used"},
		{Config, 9, "the configuration file is wrong"},
		{Interrupted, 130, "stopped by a signal"},
	}
}

// Exit is the exit code of a kind; an unknown kind counts as Internal.
func (k Kind) Exit() int {
	for _, i := range Kinds() {
		if i.Kind == k {
			return i.Exit
		}
	}
	return 1
}

// A Problem is the error that people see: what happened and what to do next.
// It crosses the socket as the Varlink error com.kagimori.Problem.
type Problem struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
	// Next says what to do; empty when there is nothing sensible to say.
	Next string `json:"next,omitempty"`

	cause error
}

// Problemf makes a Problem. The format may wrap an error with %w.
func Problemf(kind Kind, next, format string, args ...any) *Problem {
	err := fmt.Errorf(format, args...)
	return &Problem{Kind: kind, Message: err.Error(), Next: next, cause: errors.Unwrap(err)}
}

// Error is the message alone; Next is printed on a line of its own.
func (p *Problem) Error() string { return p.Message }

// Unwrap returns the error that Problemf wrapped, on this side of the socket.
func (p *Problem) Unwrap() error { return p.cause }

// Is matches a Problem of the same kind, so that a test or caller can say
// errors.Is(err, &control.Problem{Kind: control.NotFound}).
func (p *Problem) Is(target error) bool {
	t, ok := target.(*Problem)
	return ok && t.Message == "" && t.Kind == p.Kind
}

// Explained is an error of a package that cannot import this one (configs)
// but knows its kind and next step.
type Explained interface {
	error
	ProblemKind() string
	NextStep() string
}

// AsProblem makes a Problem of any error, nil of nil. What wraps a Problem
// keeps its kind and next step under the longer message; a context that ended
// is Interrupted or Unavailable; everything else is Internal.
func AsProblem(err error) *Problem {
	if err == nil {
		return nil
	}
	if p, ok := err.(*Problem); ok {
		return p
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		return &Problem{Kind: p.Kind, Message: err.Error(), Next: p.Next, cause: err}
	}
	if e, ok := errors.AsType[Explained](err); ok {
		return &Problem{Kind: Kind(e.ProblemKind()), Message: err.Error(), Next: e.NextStep(), cause: err}
	}
	kind := Internal
	switch {
	case errors.Is(err, context.Canceled):
		kind = Interrupted
	case errors.Is(err, context.DeadlineExceeded):
		kind = Unavailable
	}
	return &Problem{Kind: kind, Message: err.Error(), cause: err}
}

// Names of errors on the wire: ours, and those of the Varlink service interface.
const (
	problemError        = "com.kagimori.Problem"
	errInterface        = "org.varlink.service.InterfaceNotFound"
	errMethod           = "org.varlink.service.MethodNotFound"
	errNotImplemented   = "org.varlink.service.MethodNotImplemented"
	errInvalidParameter = "org.varlink.service.InvalidParameter"
	errPermission       = "org.varlink.service.PermissionDenied"
	errExpectedMore     = "org.varlink.service.ExpectedMore"
)

// fromWire makes the Problem that a reply's error stands for. [CTL-7]
func fromWire(name string, parameters json.RawMessage) *Problem {
	const older = "the daemon may be older or newer than this program: compare `version`, then restart the daemon"
	switch name {
	case problemError:
		p := &Problem{}
		if err := json.Unmarshal(parameters, p); err != nil || p.Message == "" {
			return Problemf(Internal, older, "the daemon sent an unreadable problem")
		}
		return p
	case errInterface, errMethod, errNotImplemented:
		return Problemf(Unavailable, older, "the daemon does not offer this (%s %s)", name, parameters)
	case errExpectedMore:
		return Problemf(Usage, "", "this method answers only as a stream (%s)", name)
	case errInvalidParameter:
		return Problemf(BadInput, older, "the daemon does not take this (%s %s)", name, parameters)
	case errPermission:
		return Problemf(Refused, "", "the daemon refuses this (%s)", name)
	}
	return Problemf(Internal, older, "the daemon answered with an unknown error (%s)", name)
}
