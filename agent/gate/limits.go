package gate

import "time"

// Every bound on what comes from outside.
const (
	// defaultSessions bounds admitted connections, defaultPerCredential those
	// of one credential: a terminal's relay opens one for each local one.
	defaultSessions      = 4096
	defaultPerCredential = 256
	// maxPending bounds connections that have not proved anything yet. One
	// more pushes out the oldest: a real handshake is over long before, so
	// idle ones cannot keep terminals out.
	maxPending = 256
	// handshakeTime is the time for a TLS handshake, lingerTime the time that a
	// refused terminal has to read why, lingerBytes what it may send meanwhile.
	handshakeTime = 10 * time.Second
	lingerTime    = time.Second
	lingerBytes   = 64 << 10

	// headerTime and maxHeader (bytes) bound a request's head, idleTime the
	// pause between two requests.
	headerTime = 15 * time.Second
	maxHeader  = 32 << 10
	idleTime   = 2 * time.Minute
	// stallTime is how long a body may stand still, either way. Bodies have no
	// other limit: what a terminal may send is the service's affair.
	stallTime = time.Minute
	// dialTime and answerTime are what the service has to accept a connection,
	// and to begin an answer once it has the whole request.
	dialTime   = 5 * time.Second
	answerTime = 2 * time.Minute
	// maxAnswerHeader bounds the head of the service's answer, in bytes.
	maxAnswerHeader = 64 << 10
	// idleUpstream is how many connections to the service are kept open.
	idleUpstream = 64

	// maxIssuers bounds how many service CAs a gate takes lists of (one, and its
	// successors).
	maxIssuers = 8
	maxURL     = 2048
	// maxSkew is how far ahead a list's thisUpdate may be.
	maxSkew = 5 * time.Minute
	// confirmWrites is how often within crl_max_age the file is written only to
	// say that a list was confirmed.
	confirmWrites = 16
	// fetchTime bounds one fetch; fetchRetry is the first pause after one that
	// failed, and doubles up to CRLFetch.
	fetchTime  = 30 * time.Second
	fetchRetry = 2 * time.Second

	// sweepEvery is how often open connections are judged again.
	sweepEvery = time.Second
	// acceptPause and acceptPauseMax are the pauses after an error of accept.
	acceptPause    = 5 * time.Millisecond
	acceptPauseMax = time.Second
	// shutdownGrace is what running requests get at shutdown.
	shutdownGrace = 5 * time.Second
	// logBudget is how many refusals are logged each second; more are counted.
	logBudget = 20
)
