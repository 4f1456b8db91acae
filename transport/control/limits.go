// Every bound on what comes over the socket.

package control

import "time"

const (
	// MaxMessage bounds one message either way, in bytes, without its NUL.
	// Longer lists go page by page or as a stream.
	MaxMessage = 256 << 10
	// MaxConnections is how many callers a daemon serves at once.
	MaxConnections = 64
	// MaxConnectionsPerUser bounds one user who is not admin, MaxLesser all of
	// them together, so that nobody locks the administrator out.
	MaxConnectionsPerUser = 16
	MaxLesser             = 48
	// MaxSecret bounds one sealed secret, in bytes of plaintext.
	MaxSecret = 16 << 10

	// maxDepth bounds the nesting of a message.
	maxDepth = 16
	// maxWaiting is how many calls may wait behind the one that runs.
	maxWaiting = 1

	// frameTimeout is the time for a whole message once it began, either way.
	frameTimeout = 10 * time.Second
	// idleTimeout closes a connection on which nothing is asked; people type
	// secrets meanwhile.
	idleTimeout = 10 * time.Minute
	// hangupPoll is how often a half-closed connection is looked at.
	hangupPoll = 100 * time.Millisecond
	// dialWait is how long Dial waits for a daemon that is starting.
	dialWait = 2 * time.Second
	// dialRetry is the pause between its attempts.
	dialRetry = 50 * time.Millisecond
)
