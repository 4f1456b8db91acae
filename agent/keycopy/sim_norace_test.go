//go:build !race

package keycopy

const raced = false
