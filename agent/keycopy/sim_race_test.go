//go:build race

package keycopy

// raced is true under the race detector, which makes a run of the simulator five
// times as slow and cannot find anything in it: its strands never run at once.
const raced = true
