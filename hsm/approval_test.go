package hsm

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestApprovalFile(t *testing.T) {
	a := Approval{Values: PCRs{14: {1}, 7: {2}}, Signature: []byte{3, 4}}
	data, err := FormatApproval(a)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseApproval(data); err != nil || !reflect.DeepEqual(got, a) {
		t.Fatalf("%+v, %v", got, err)
	}
	good := strings.TrimSpace(string(data))
	for name, s := range map[string]string{
		"empty": "", "not JSON": "x", "twice": good + good, "another version": strings.Replace(good, `":1,`, `":2,`, 1),
		"unknown field":  strings.Replace(good, `{"kagimori`, `{"x":1,"kagimori`, 1),
		"another case":   strings.Replace(good, `"registers"`, `"Registers"`, 1),
		"other order":    `{"registers":[],"kagimori_boot_approval":1,"signature":"AwQ="}`,
		"no registers":   `{"kagimori_boot_approval":1,"registers":[],"signature":"AwQ="}`,
		"no signature":   strings.Replace(good, `"AwQ="`, `""`, 1),
		"register 24":    strings.Replace(good, `"register":14`, `"register":24`, 1),
		"the same twice": strings.Replace(good, `"register":14`, `"register":7`, 1),
		"short value":    strings.Replace(good, `"sha256":"02`, `"sha256":"`, 1),
		"upper case":     strings.Replace(good, `"sha256":"02`, `"sha256":"0A`, 1),
		"spaces inside":  strings.Replace(good, `,`, `, `, 1),
		"too long":       good + strings.Repeat(" ", MaxApprovalFile),
	} {
		if _, err := ParseApproval([]byte(s)); !errors.Is(err, ErrApproval) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzApproval(f *testing.F) {
	data, err := FormatApproval(Approval{Values: PCRs{7: {2}}, Signature: []byte{3}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"kagimori_boot_approval":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseApproval(data)
		if err != nil {
			return
		}
		again, err := FormatApproval(a)
		if err != nil || strings.TrimSpace(string(again)) != strings.TrimSpace(string(data)) {
			t.Fatalf("%q becomes %q (%v)", data, again, err)
		}
	})
}

func TestEmptyRegisters(t *testing.T) {
	ones := [32]byte([]byte(strings.Repeat("\xff", 32)))
	p := PCRs{7: {}, 17: ones, 8: {1}, 18: {0xff}}
	for register, want := range map[int]bool{7: true, 17: true, 8: false, 18: false} {
		if p.Empty(register) != want {
			t.Errorf("register %d: %v", register, !want)
		}
	}
}
