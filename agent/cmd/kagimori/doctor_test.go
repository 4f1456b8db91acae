package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/kagimori/kagimori/agent/doctor"
)

// Every verb that the doctor sends people to exists.
func TestNextStepsAreVerbs(t *testing.T) {
	named := regexp.MustCompile(`kagimori((?: [a-z][a-z-]*)+)`)
	found := 0
	for _, c := range doctor.Classes() {
		for _, m := range named.FindAllStringSubmatch(c.Next, -1) {
			if words := strings.Fields(m[1]); !strings.Contains(c.Next, "systemctl start"+m[0][len("kagimori"):]) {
				found++
				args := append(words[:min(2, len(words))], "--help")
				var out, errs bytes.Buffer
				if code := program().Run(t.Context(), args, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "kagimori "+strings.Join(words[:min(2, len(words))], " ")) {
					t.Errorf("%s: there is no %q: %s", c.Class, m[0], errs.String())
				}
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d verbs named: the search is broken", found)
	}
}
