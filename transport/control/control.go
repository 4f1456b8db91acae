// Package control is the socket on which a daemon answers the command line:
// Varlink (https://varlink.org), that is NUL-terminated JSON over a unix
// stream socket, so that any language can speak it in ten lines. It knows
// nothing of what is said over it. START HERE:
//
//   - problem.go: the error type that people see, its kinds and exit codes
//   - access.go: who a caller is (SO_PEERCRED) and what he may do
//   - server.go, call.go: a daemon's side; idl.go writes the description served
//   - client.go: a verb's side
//   - seal.go: secrets on this socket, which never cross it in clear
//   - frame.go, strict.go: what is let in; limits.go: how much of it
//
// Rules of the wire, each held by a test:
//
//	[CTL-1] One message is one JSON object and a NUL byte, at most MaxMessage bytes.
//	[CTL-2] A connection carries one call at a time; one more may wait.
//	[CTL-3] Parameters are strict: exact names, none twice, none unknown, nothing after.
//	[CTL-4] A method runs only for a caller of its class; a refusal says who may.
//	[CTL-5] When the caller hangs up, the call's context ends. Half-closing is not hanging up.
//	[CTL-6] Whoever starts a message and does not finish it, or does not read, is cut off.
//	[CTL-7] Errors are com.kagimori.Problem(kind, message, next), or one of org.varlink.service.
//	[CTL-8] Replies are read tolerantly: a newer daemon may say more than an older verb knows.
package control
