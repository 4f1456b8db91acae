//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// An order is one line of JSON from the story; a result is the line that answers.
type order struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Stdin   string   `json:"stdin"`
	Seconds int      `json:"seconds"`
	// Background: it goes on after the answer; what it says goes to the console.
	Background bool `json:"background"`
	// Put names a file to write Content to; nothing is run then.
	Put     string `json:"put"`
	Content []byte `json:"content"`
}

type result struct {
	Out  string `json:"out"`
	Err  string `json:"err"`
	Code int    `json:"code"` // -1: not started, or killed
}

// serve obeys orders, one at a time.
func serve(story io.ReadWriter) error {
	lines := bufio.NewReader(story)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("the story is gone: %w", err)
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil || len(o.Argv) == 0 && o.Put == "" {
			return fmt.Errorf("no order: %q (%w)", line, err)
		}
		answer, err := json.Marshal(o.run())
		if err != nil {
			return err
		}
		if _, err := story.Write(append(answer, '\n')); err != nil {
			return err
		}
	}
}

func (o *order) run() result {
	if o.Put != "" {
		if err := os.WriteFile(o.Put, o.Content, 0o600); err != nil {
			return result{Err: err.Error(), Code: -1}
		}
		return result{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(o.Seconds)*time.Second)
	if o.Background {
		ctx = context.Background()
	}
	defer cancel()
	c := exec.CommandContext(ctx, o.Argv[0], o.Argv[1:]...)
	c.Env = append([]string{"HOME=/tmp", "TMPDIR=/tmp", "PATH=/bin"}, o.Env...)
	c.Dir, c.Stdin = "/tmp", strings.NewReader(o.Stdin)
	if o.Background {
		c.Stdout, c.Stderr = os.Stdout, os.Stdout
		if err := c.Start(); err != nil {
			return result{Err: err.Error(), Code: -1}
		}
		go c.Wait()
		return result{}
	}
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr, c.WaitDelay = &out, &stderr, time.Second
	err := c.Run()
	if c.ProcessState == nil {
		return result{Err: err.Error(), Code: -1}
	}
	return result{out.String(), stderr.String(), c.ProcessState.ExitCode()}
}
