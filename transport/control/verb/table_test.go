package verb

import (
	"strings"
	"testing"
)

// A table fits the screen; what other verbs want to be given stays whole.
func TestNarrowScreen(t *testing.T) {
	for width, want := range map[int]string{
		0:  "ID             SERVICE          WHY\ncr-7q3mz5xk2a  maps-of-the-sea  it has expired long ago\n",
		44: "ID             SERVICE        WHY\ncr-7q3mz5xk2a  maps-of-the-…  it has expire…\n",
		10: "ID             SERVICE   WHY\ncr-7q3mz5xk2a  maps-of…  it has …\n",
	} {
		var b strings.Builder
		table := NewTable(&screen{w: &b, width: width}, "ID", "SERVICE", "WHY")
		table.Row("cr-7q3mz5xk2a", "maps-of-the-sea", Bad("it has expired long ago"))
		table.Flush("")
		if b.String() != want {
			t.Errorf("width %d:\n%s\nwant\n%s", width, b.String(), want)
		}
	}
}
