package main

import (
	"context"
	"os"
	"testing"
)

// A daemon in a test has its store checked by this test binary, started again
// as it would start itself.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "check-store" {
		os.Exit(program().Execute(context.Background()))
	}
	os.Exit(m.Run())
}
