package transport

import (
	"bytes"
	"strings"
	"testing"
)

const enrollZero = "enroll-00000000000000000000000000000000"

func TestTopicsGolden(t *testing.T) {
	for segment, want := range map[string][2]string{
		"nav-001":  {"kagimori/1/nav-001/up", "kagimori/1/nav-001/down"},
		enrollZero: {"kagimori/1/" + enrollZero + "/up", "kagimori/1/" + enrollZero + "/down"},
	} {
		up, down := Topics(segment)
		if up != want[0] || down != want[1] {
			t.Errorf("%s: got %s and %s", segment, up, down)
		}
		for i, topic := range want {
			got, isUp, err := ParseTopic(topic)
			if err != nil || got != segment || isUp != (i == 0) {
				t.Errorf("%s: got %q, up %v, %v", topic, got, isUp, err)
			}
		}
	}
}

func TestTopicVersionIsTheEnvelopes(t *testing.T) {
	if want := "kagimori/" + string(rune('0'+Version)) + "/"; topicPrefix != want {
		t.Errorf("topics begin with %s, envelopes say %s", topicPrefix, want)
	}
}

func TestParseTopicRefuses(t *testing.T) {
	for _, topic := range []string{
		"", "/", "kagimori/1/nav/", "kagimori/1//up", "kagimori/2/nav/up", "kagimori/1/nav/up/", "kagimori/1/nav/sideways",
		"kagimori/1/+/up", "kagimori/1/#", "#", "$SYS/broker", "$share/g/kagimori/1/nav/down", "kagimori/1/Nav/up",
		"kagimori/1/nav/down/up", "kagimori/1/nav\x00/up", "/kagimori/1/nav/up", "kagimori/1/enroll-12/up",
		"kagimori/1/enroll-0000000000000000000000000000000G/up", "kagimori/1/" + strings.Repeat("a", MaxName+1) + "/up",
	} {
		if got, _, err := ParseTopic(topic); err == nil {
			t.Errorf("%q: taken as segment %q", topic, got)
		}
	}
}

func TestNewEnrollSegment(t *testing.T) {
	got, err := NewEnrollSegment(bytes.NewReader(bytes.Repeat([]byte{0xa5}, 16)))
	if err != nil || got != "enroll-"+strings.Repeat("a5", 16) || !IsEnrollSegment(got) || !ValidSegment(got) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := NewEnrollSegment(bytes.NewReader(nil)); err == nil {
		t.Error("a segment came from no randomness")
	}
}

// What parses is what Topics makes, and never reaches into another topic.
func FuzzParseTopic(f *testing.F) {
	for _, seed := range []string{"kagimori/1/nav-001/up", "kagimori/1/" + enrollZero + "/down", "kagimori/1/+/up", "kagimori/1/a/up/down", "#"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		segment, isUp, err := ParseTopic(topic)
		if err != nil {
			return
		}
		up, down := Topics(segment)
		if isUp && up != topic || !isUp && down != topic {
			t.Errorf("%q parses to %q but is not one of its topics", topic, segment)
		}
		if strings.ContainsAny(segment, "/+#$\x00") {
			t.Errorf("%q has a separator or wildcard in segment %q", topic, segment)
		}
	})
}
