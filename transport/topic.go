package transport

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Topics (DESIGN D1): every client of the broker has exactly two,
//
//	kagimori/1/<segment>/up      it publishes there, the server receives
//	kagimori/1/<segment>/down    the server publishes there, it subscribes
//
// where the segment is its terminal's name or, before enrollment, a segment
// made for this one connection. The segment is also its MQTT client id.

const (
	topicPrefix = "kagimori/1/"
	topicUp     = "/up"
	topicDown   = "/down"

	// enrollRandom is the random part of an enrollment segment in bytes.
	enrollRandom = 16
)

// errTopic is a topic that no client of this system has.
var errTopic = errors.New("not a topic of this system")

// Topics gives the two topics of a segment.
func Topics(segment string) (up, down string) {
	return topicPrefix + segment + topicUp, topicPrefix + segment + topicDown
}

// ParseTopic takes apart what Topics made.
func ParseTopic(topic string) (segment string, up bool, err error) {
	rest, found := strings.CutPrefix(topic, topicPrefix)
	if found {
		if segment, up = strings.CutSuffix(rest, topicUp); !up {
			segment, found = strings.CutSuffix(rest, topicDown)
		}
	}
	if !found || !ValidSegment(segment) {
		return "", false, fmt.Errorf("%.80q: %w", topic, errTopic)
	}
	return segment, up, nil
}

// ValidSegment reports whether s is a terminal's name or an enrollment segment.
func ValidSegment(s string) bool {
	if IsEnrollSegment(s) {
		return true
	}
	_, err := ParseName(s)
	return err == nil
}

// IsEnrollSegment reports whether s is "enroll-" and 32 lower-case hexadecimal
// digits: the client id of a terminal that has no certificate yet (DESIGN D8).
func IsEnrollSegment(s string) bool {
	digits, found := strings.CutPrefix(s, EnrollPrefix)
	if !found || len(digits) != 2*enrollRandom {
		return false
	}
	return strings.Trim(digits, "0123456789abcdef") == ""
}

// NewEnrollSegment draws a segment for one enrollment.
func NewEnrollSegment(random io.Reader) (string, error) {
	var b [enrollRandom]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("draw an enrollment segment: %w", err)
	}
	return EnrollPrefix + hex.EncodeToString(b[:]), nil
}
