/* The transaction of keycopy/1: what each end writes, what it then sends, and
 * what is left when link, power, operator or one of the two boxes fails between
 * any two steps. README.md says what is not in here.
 *
 *   spin -DMOVE -a transaction.pml     move; without -DMOVE: copy
 *     -DMOVE -DMIXED                   one item moves and another is copied
 *     -DFOUND                          whoever was taken for dead may turn up again
 *     -DBUDGET=n                       how much goes wrong in one run (default 4)
 *     -DMUTANT_X                       one mistake; see the defines below
 *   gcc -O1 -w -o pan pan.c && ./pan -a -m100000 -N one_active
 *
 * A rule of reading: every `atomic` is one step that nothing can interrupt. A
 * durable write and the sending of what depends on it are always two steps, so
 * that the power may fail in between.
 */
#ifndef BUDGET
#define BUDGET 4
#endif
#ifdef MOVE
#define MOVES 1
#else
#define MOVES 0
#endif
#ifdef FOUND
#define FINDS 1
#else
#define FINDS 0
#endif
#ifdef MIXED
#define MIXES 1
#else
#define MIXES 0
#endif

/* Mistakes. Each is a change that a programmer could make and no test of a good
 * run would notice. */
#ifdef MUTANT_RECEIPT_BEFORE_STAGED
#define AFTER_ITEM SEND_RECEIPT
#define AFTER_RECEIPT WRITE_STAGED
#else
#define AFTER_ITEM WRITE_STAGED
#define AFTER_RECEIPT AWAIT_COMMIT
#endif
#ifdef MUTANT_COMMIT_BEFORE_COMMITTED
#define ON_RECEIPT SEND_ANSWER
#define AFTER_ANSWER WRITE_COMMITTED
#else
#define ON_RECEIPT WRITE_COMMITTED
#define AFTER_ANSWER LISTEN
#endif
#ifdef MUTANT_ITEM_BEFORE_OFFERED
#define ON_PROOF SEND_GRANT
#define AFTER_OFFERED LISTEN
#define AFTER_GRANTED_ITEM (sSt == IDLE -> WRITE_OFFERED : LISTEN)
#else
#define ON_PROOF WRITE_OFFERED
#define AFTER_OFFERED SEND_GRANT
#define AFTER_GRANTED_ITEM LISTEN
#endif
#ifdef MUTANT_CLOSE_BEFORE_DONE
#define ON_ACTIVATED SEND_CLOSE
#define AFTER_CLOSE (sSt == DONE -> LISTEN : WRITE_DONE)
#else
#define ON_ACTIVATED WRITE_DONE
#define AFTER_CLOSE LISTEN
#endif
#ifdef MUTANT_ACTIVE_AT_STAGED
#define STAGED_KEY ACTIVE
#else
#define STAGED_KEY (MOVES -> DISABLED : ACTIVE)
#endif
#ifdef MUTANT_DESTROY_AT_COMMITTED
#define COMMITTED_KEY NONE
#else
#define COMMITTED_KEY DISABLED
#endif
#ifdef MUTANT_RECLAIM_WHILE_TARGET_LIVES
#define MAY_RECLAIM 1
#else
#define MAY_RECLAIM tDead
#endif
#ifdef MUTANT_ACTIVATE_WHILE_SOURCE_LIVES
#define MAY_ACTIVATE 1
#else
#define MAY_ACTIVATE sDead
#endif
#ifdef MUTANT_CONFLICT_UNSAID   /* nobody looks when a reclaimed key is in use elsewhere */
#define NOTED 0
#else
#define NOTED 1
#endif
#ifdef MUTANT_ANY_RECORD        /* resumes with whatever record is there */
#define OWN(asked, held) 1
#else
#define OWN(asked, held) (asked == held)
#endif
#ifdef MUTANT_RECEIPT_TWICE     /* a repeated receipt takes effect again */
#define FIRST_RECEIPT 1
#else
#define FIRST_RECEIPT (sSt == OFFERED)
#endif

/* Frames. RESUME and the frame that it leads to are one: RESUME here asks for
 * the items, RECEIPT and ACTIVATED resume by themselves. ABORTED is the ERROR
 * of a Source that has ended, or never had, the transaction asked for; UNPAID is
 * its answer to an ACTIVATED that it has no receipt for: the Target was forced. */
mtype = { PROOF, GRANT, ITEM, RESUME, RECEIPT, COMMIT, ACTIVATED, CLOSE, ABORTED, UNPAID };
chan t2s = [2] of { mtype, byte };      /* frame, transaction */
chan s2t = [2] of { mtype, byte };

/* Durable states, in the order in which they follow each other. */
#define IDLE      0
#define OFFERED   1     /* Source: has told the Target what it gets */
#define COMMITTED 2     /* Source, move: key disabled, the Target may use it */
#define DONE      3     /* Source: tombstone, answers repeated frames */
#define RECLAIMED 4     /* Source: the operator took the key back */
#define STARTED   1     /* Target: can resume without an operator */
#define STAGED    2     /* Target: has the key; in a copy, uses it */
#define INUSE     3     /* Target, move: uses the key (ACTIVE in the journal) */
#define CLOSED    4     /* Target: the Source is done */
#define KEPT      5     /* Target: has what was copied, the Source took no receipt */
/* A key at one end. */
#define NONE      0
#define DISABLED  1
#define ACTIVE    2

byte sSt, sTxn, sKey = ACTIVE;          /* durable, Source */
byte tSt, tTxn, tKey = NONE;            /* durable, Target */
bit sForced, tForced;                   /* durable: a person has said that the other end is dead */
bit sConflict, tConflict;               /* durable: both use the key, and this end knows */
byte tCopied = NONE;                    /* MIXED: the copied item at the Target; at the Source it is always in use */

/* Where each program stands: lost with the power. */
mtype = { LISTEN, WRITE_OFFERED, SEND_GRANT, SEND_ITEM, WRITE_COMMITTED, SEND_ANSWER, WRITE_DONE, SEND_CLOSE, SEND_ABORTED, WRITE_CONFLICT, SEND_UNPAID,
          REST, SEND_PROOF, SEND_RESUME, AWAIT_GRANT, WRITE_STARTED, AWAIT_ITEM, WRITE_STAGED, SEND_RECEIPT, AWAIT_COMMIT,
          WRITE_ACTIVE, SEND_ACTIVATED, AWAIT_CLOSE, WRITE_CLOSED, WRITE_ABORTED };
mtype sAt = LISTEN, tAt = REST;
byte sCode, tCode;                      /* operator codes, in RAM only; code n opens transaction n; 0: none */
byte sGot, tGot;                        /* transaction of the frame in hand */
bit conn;                               /* a connection stands; its frames die with it */
bit sDead, tDead;                       /* dead for good, or taken for it */
byte txn;                               /* codes made so far */
byte faults;

/* Ghosts: what the properties need to know and no program does. */
byte receipts;                          /* effects of receipts of this transaction, at the Source */
byte installs;                          /* same for installs at the Target */
byte offered;                           /* newest transaction that the Source has on disk as offered */
bit sExcused, tExcused;                 /* the code may be gone: expired, power cut, given up */
bit tTyped;                             /* a code was typed at the Target */
bit orphaned;                           /* the key's only rightful holder died: no protocol helps */
bit sFound, tFound;                     /* was taken for dead and is not */
bit lied;                               /* one was found after a last resort at the other */
bit finished;                           /* nothing is left to do */

/* For the simulator of the production code: each durable tuple that is reached
 * (pan prints when compiled with -DPRINTF). Dead ends hold nothing. */
inline reached() {
	printf("REACHED %d %d %d %d %d %d %d\n", (sDead -> 9 : sSt), (sDead -> 0 : sKey), (sDead -> 0 : ACTIVE),
		(tDead -> 9 : tSt), (tDead -> 0 : tKey), (tDead -> 0 : tCopied),
		(!sDead && !tDead && sSt != IDLE && tSt != IDLE && sTxn == tTxn))
}

inline hangUp() {
	conn = 0;
	do
	:: nempty(t2s) -> t2s?_,_
	:: nempty(s2t) -> s2t?_,_
	:: empty(t2s) && empty(s2t) -> break
	od
}

/* Who finds the link gone when sending gives the session up. */
inline sSend(frame, id, next) {
	if
	:: conn -> s2t!frame,id; sAt = next
	:: !conn -> sAt = LISTEN
	fi
}
inline tSend(frame, id, next) {
	if
	:: conn -> t2s!frame,id; tAt = next
	:: !conn -> tAt = REST
	fi
}

/* What a Target is left with that has nothing. */
#define TARGET_ENDS tSt = IDLE; tTxn = 0; tKey = NONE; installs = 0; tTyped = 0

#define HELD(id) (sSt != IDLE && sSt != RECLAIMED && OWN(id, sTxn))

active proctype source() {
	do
	:: atomic { !sDead && sAt == LISTEN && t2s?[PROOF,_] -> t2s?PROOF,sGot;
		if
		:: sGot == sCode && sSt == IDLE -> sAt = ON_PROOF
		:: else -> hangUp()             /* expired, or of an older offer */
		fi; sGot = 0 }
	:: atomic { !sDead && sAt == WRITE_OFFERED -> sSt = OFFERED; sTxn = txn; offered = txn; sAt = AFTER_OFFERED; reached() }
	:: atomic { !sDead && sAt == SEND_GRANT -> sSend(GRANT, txn, SEND_ITEM);
#ifdef MUTANT_SOURCE_CODE_AT_GRANT
		sCode = 0
#endif
		}
	:: atomic { !sDead && sAt == SEND_ITEM -> sSend(ITEM, txn, AFTER_GRANTED_ITEM) }

	:: atomic { !sDead && sAt == LISTEN && t2s?[RESUME,_] -> t2s?RESUME,sGot;
		if
		:: HELD(sGot) && sSt == OFFERED -> sAt = SEND_ITEM; sGot = 0
		:: else -> sAt = SEND_ABORTED
		fi }

	:: atomic { !sDead && sAt == LISTEN && t2s?[RECEIPT,_] -> t2s?RECEIPT,sGot;
		if
		:: HELD(sGot) && FIRST_RECEIPT -> sAt = ON_RECEIPT; sGot = 0
		:: HELD(sGot) && !FIRST_RECEIPT -> sAt = SEND_ANSWER; sGot = 0
		:: else -> sAt = SEND_ABORTED
		fi }
	:: atomic { !sDead && sAt == WRITE_COMMITTED -> receipts++;
		if
		:: MOVES -> sSt = COMMITTED; sKey = COMMITTED_KEY
		:: else -> sSt = DONE           /* a copy takes nothing from the Source */
		fi;
		sCode = 0;                      /* after the write: a cut in between wipes it too */
#ifdef MUTANT_COMMIT_BEFORE_COMMITTED
		sAt = LISTEN;
#else
		sAt = SEND_ANSWER;
#endif
		reached() }
	:: atomic { !sDead && sAt == SEND_ANSWER ->
		if
		:: MOVES && sSt != DONE -> sSend(COMMIT, sTxn, AFTER_ANSWER)
		:: else -> sSend(CLOSE, sTxn, AFTER_ANSWER)
		fi }

	:: atomic { !sDead && sAt == LISTEN && t2s?[ACTIVATED,_] -> t2s?ACTIVATED,sGot;
		if
		:: HELD(sGot) && sSt == COMMITTED -> sAt = ON_ACTIVATED; sGot = 0
		:: HELD(sGot) && sSt == DONE -> sAt = SEND_CLOSE; sGot = 0
		:: HELD(sGot) && sSt == OFFERED -> sAt = SEND_UNPAID; sGot = 0
		:: else -> sAt = (NOTED -> WRITE_CONFLICT : SEND_ABORTED)
		fi }
	:: atomic { !sDead && sAt == SEND_UNPAID -> sSend(UNPAID, sTxn, LISTEN) }
	:: atomic { !sDead && sAt == WRITE_CONFLICT -> sConflict = 1; sAt = SEND_ABORTED }
	:: atomic { !sDead && sAt == WRITE_DONE -> sSt = DONE; sKey = NONE; /* destroyed */
#ifdef MUTANT_CLOSE_BEFORE_DONE
		sAt = LISTEN;
#else
		sAt = SEND_CLOSE;
#endif
		reached() }
	:: atomic { !sDead && sAt == SEND_CLOSE -> sSend(CLOSE, sTxn, AFTER_CLOSE) }

	:: atomic { !sDead && sAt == SEND_ABORTED -> sSend(ABORTED, sGot, LISTEN); sGot = 0 }
	od
}

#define READY (!conn && !sDead && !tDead && sAt == LISTEN && tAt == REST)

active proctype target() {
	do
	/* Dials: with the code that was typed, else to resume what is open. */
	:: atomic { READY && tCode && tCode == sCode && sSt == IDLE && tSt <= STARTED -> conn = 1; tAt = SEND_PROOF }
	:: atomic { READY && !tCode && tSt == STARTED -> conn = 1; tAt = SEND_RESUME }
	:: atomic { READY && tCode && (tCode != sCode || sSt != IDLE) && tSt == STARTED -> conn = 1; tAt = SEND_RESUME }
	:: atomic { READY && tSt == STAGED -> conn = 1; tAt = SEND_RECEIPT }
	:: atomic { READY && tSt == INUSE -> conn = 1; tAt = SEND_ACTIVATED }

	:: atomic { !tDead && tAt == SEND_PROOF -> tSend(PROOF, tCode, AWAIT_GRANT) }
	:: atomic { !tDead && tAt == AWAIT_GRANT && s2t?[GRANT,_] -> s2t?GRANT,tGot; tAt = WRITE_STARTED }
	:: atomic { !tDead && tAt == WRITE_STARTED -> tSt = STARTED; tTxn = tGot; tGot = 0; tAt = AWAIT_ITEM;
#ifdef MUTANT_TARGET_CODE_AT_STARTED
		tCode = 0;
#endif
		reached() }

	:: atomic { !tDead && tAt == SEND_RESUME -> tSend(RESUME, tTxn, AWAIT_ITEM) }
	:: atomic { !tDead && tAt == AWAIT_ITEM && s2t?[ITEM,_] -> s2t?ITEM,tGot;
		if
		:: OWN(tGot, tTxn) -> tAt = AFTER_ITEM
		:: else -> hangUp(); tAt = REST
		fi; tGot = 0 }
	:: atomic { !tDead && tAt == WRITE_STAGED -> tSt = STAGED; tKey = STAGED_KEY; tCopied = (MIXES -> ACTIVE : NONE); installs++; tCode = 0;
#ifdef MUTANT_RECEIPT_BEFORE_STAGED
		tAt = AWAIT_COMMIT;
#else
		tAt = SEND_RECEIPT;
#endif
		reached() }
	:: atomic { !tDead && tAt == SEND_RECEIPT -> tSend(RECEIPT, tTxn, (tSt == STAGED -> AWAIT_COMMIT : AFTER_RECEIPT)) }

	:: atomic { !tDead && tAt == AWAIT_COMMIT && s2t?[COMMIT,_] -> s2t?COMMIT,_; tAt = (tSt == INUSE -> SEND_ACTIVATED : WRITE_ACTIVE) }
	:: atomic { !tDead && tAt == AWAIT_CLOSE && s2t?[UNPAID,_] -> s2t?UNPAID,_; tAt = SEND_RECEIPT }
	:: atomic { !tDead && tAt == WRITE_ACTIVE -> tSt = INUSE; tKey = ACTIVE; tAt = SEND_ACTIVATED; reached() }
	:: atomic { !tDead && tAt == SEND_ACTIVATED -> tSend(ACTIVATED, tTxn, AWAIT_CLOSE) }

	:: atomic { !tDead && (tAt == AWAIT_COMMIT || tAt == AWAIT_CLOSE) && s2t?[CLOSE,_] -> s2t?CLOSE,_; tAt = WRITE_CLOSED }
	:: atomic { !tDead && tAt == WRITE_CLOSED -> tSt = CLOSED; tAt = REST; conn = 0; reached() }

	/* The Source has ended what was open here. Staged keys of a move were never
	 * used and go; what is in use stays, and is a conflict if it was to move. */
	:: atomic { !tDead && (tAt == AWAIT_ITEM || tAt == AWAIT_COMMIT || tAt == AWAIT_CLOSE) && s2t?[ABORTED,_] -> s2t?ABORTED,_; tAt = WRITE_ABORTED }
	:: atomic { !tDead && tAt == WRITE_ABORTED ->
		if
		:: tKey == ACTIVE -> tSt = KEPT; tConflict = (MOVES && NOTED)
		:: tKey != ACTIVE && tCopied == ACTIVE -> tSt = KEPT; tKey = NONE
		:: tKey != ACTIVE && tCopied != ACTIVE -> TARGET_ENDS
		fi; tAt = REST; hangUp(); reached() }

	:: atomic { !tDead && !conn && (tAt == AWAIT_GRANT || tAt == AWAIT_ITEM || tAt == AWAIT_COMMIT || tAt == AWAIT_CLOSE) -> tAt = REST }
	od
}

/* An open transaction that both ends know goes on without an operator. */
#define RESUMABLE (sSt != IDLE && tSt >= STARTED && tSt <= INUSE && sTxn == tTxn)
#define T_OVER (tSt >= CLOSED)
#define AGREED ((tSt == CLOSED && sSt == DONE && sTxn == tTxn) || tSt == KEPT || ((sFound || tFound) && tSt == IDLE))
#define SETTLED ((sDead || (!sCode && sKey != DISABLED)) && (tDead || (!tCode && tKey != DISABLED)) && (sDead || tDead || AGREED))
#define RESTS (!conn && (sDead || sAt == LISTEN) && (tDead || tAt == REST))

active proctype operator() {
	do
	/* Makes a code at the Source when none is left that could work; an older
	 * transaction that got no further than OFFERED ends with it. */
	:: atomic { READY && sSt <= OFFERED && !T_OVER && !RESUMABLE && tSt <= STARTED && (!sCode || sSt == OFFERED) ->
		txn++; sCode = txn; sSt = IDLE; sTxn = 0; sExcused = 0; receipts = 0; reached() }
	/* Reads it to the Target. Before that, what is staged there must be settled. */
	:: atomic { READY && sCode && tCode != sCode && sSt == IDLE && tSt <= STARTED -> tCode = sCode; tTyped = 1; tExcused = 0; installs = 0 }
	/* Codes of no more use: they expire. */
	:: atomic { RESTS && !sDead && sCode && (tDead || T_OVER) -> sCode = 0; sExcused = 1 }
	:: atomic { RESTS && !tDead && tCode && (sDead || T_OVER) -> tCode = 0; tExcused = 1 }
	/* The last resorts. */
	:: atomic { MOVES && !sDead && sAt == LISTEN && sSt == COMMITTED && MAY_RECLAIM -> sSt = RECLAIMED; sKey = ACTIVE; sForced = 1; reached() }
	:: atomic { MOVES && !tDead && tAt == REST && tSt == STAGED && MAY_ACTIVATE -> tSt = INUSE; tKey = ACTIVE; tForced = 1; reached() }
	:: atomic { tDead && !sDead && sAt == LISTEN && sSt == OFFERED -> sSt = IDLE; sTxn = 0; sCode = 0; sExcused = 1; reached() }
	:: atomic { sDead && !tDead && tAt == REST && tSt == STARTED -> TARGET_ENDS; tCode = 0; tExcused = 1; reached() }
	:: atomic { sDead && !tDead && tAt == REST && tSt == STAGED && !MOVES -> tSt = KEPT; reached() }
	/* What was said was wrong. */
	:: atomic { FINDS && RESTS && sDead && !sFound -> sDead = 0; sFound = 1; orphaned = (tDead && sKey == NONE); lied = lied || tForced; reached() }
	:: atomic { FINDS && RESTS && tDead && !tFound -> tDead = 0; tFound = 1; orphaned = (sDead && tKey == NONE); lied = lied || sForced; reached() }
	/* All is well, or as well as it can be. */
	:: atomic { RESTS && SETTLED -> finished = 1; break }
	od
}

active proctype world() {
	do
	:: atomic { faults < BUDGET && conn -> faults++; hangUp() }
	:: atomic { faults < BUDGET && !sDead -> faults++;      /* power cut, Source */
		hangUp(); sAt = LISTEN; sGot = 0;
		if :: sCode -> sCode = 0; sExcused = 1 :: else fi }
	:: atomic { faults < BUDGET && !tDead -> faults++;      /* power cut, Target */
		hangUp(); tAt = REST; tGot = 0;
		if :: tCode -> tCode = 0; tExcused = 1 :: else fi }
	:: atomic { faults < BUDGET && sCode -> faults++; sCode = 0; sExcused = 1 }     /* code expires */
	:: atomic { faults < BUDGET && !sDead && sAt == LISTEN && sSt == OFFERED -> faults++; /* resume window ends, or offered anew too early */
		sSt = IDLE; sTxn = 0; sCode = 0; sExcused = 1; hangUp(); reached() }
	:: atomic { faults < BUDGET && !sDead -> faults++;      /* Source dies for good */
		/* Nobody else has the key, or the Target was just told to drop it. */
		if :: tDead || tKey == NONE || tAt == WRITE_ABORTED -> orphaned = 1 :: else fi;
		sDead = 1; sCode = 0; sAt = LISTEN; sGot = 0; sExcused = 1; hangUp(); reached() }
	:: atomic { faults < BUDGET && !tDead -> faults++;      /* Target dies for good */
		/* Nobody else has the key, or the Source was just told to destroy it. */
		if :: sDead || sKey == NONE || sAt == WRITE_DONE -> orphaned = 1 :: else fi;
		tDead = 1; tCode = 0; tAt = REST; tGot = 0; tExcused = 1; hangUp(); reached() }
	:: finished -> break
	od
}

init { atomic { reached() } }

/* Never two usable keys: what a move is for. A copy takes nothing from the Source. */
#ifdef MOVE
ltl one_active { [] !(!sDead && !tDead && sKey == ACTIVE && tKey == ACTIVE && !lied) }
#else
ltl one_active { [] (sKey == ACTIVE) }
#endif
/* Somebody alive can use the key, or can get to it: a disabled one at the Source
 * is reclaimed or followed by COMMIT, a disabled one at the Target counts only
 * when the Source is dead and `activate` is open to it. */
ltl never_lost { [] (orphaned || (!sDead && sKey != NONE) || (!tDead && (tKey == ACTIVE || (sDead && tKey == DISABLED)))) }
/* A receipt has one effect, keys are installed once. */
ltl one_effect { [] (receipts <= 1 && installs <= 1) }
/* What the Source takes for received is on the Target's disk. */
ltl receipt_true { [] (receipts == 0 || tDead || sSt == RECLAIMED || (tKey != NONE && (!MIXES || tCopied == ACTIVE))) }
/* No key is anywhere that the Source has not recorded first. */
ltl offer_first { [] (tKey == NONE || offered >= tTxn) }
/* "Closed" at the Target means that the Source is done. */
ltl closed_true { [] (tSt != CLOSED || (sSt == DONE && sTxn == tTxn)) }
/* Both ends speak of the same transaction when a key changes hands. */
ltl same_transaction { [] ((sSt != COMMITTED && sSt != DONE) || tDead || tSt == IDLE || sTxn == tTxn) }
/* Codes go on the receipt and when staged, or for a reason that is nobody's mistake. */
ltl source_code { [] (sCode != 0 || txn == 0 || sExcused || receipts >= 1) }
ltl target_code { [] (tCode != 0 || !tTyped || tExcused || tSt >= STAGED) }
/* When both use a key that was to move, because a person was wrong, then in the
 * end both ends say so. */
ltl conflict_said { [] !(finished && MOVES && !sDead && !tDead && sKey == ACTIVE && tKey == ACTIVE && !(sConflict && tConflict)) }
/* Every run ends, with nothing open: no deadlock, no going round in circles. */
ltl finishes { <> finished }
