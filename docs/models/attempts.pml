/* The counting of guesses at an operator code, at one end, against somebody who
 * has the security code, guesses, and cuts the power when he likes, as often as
 * he likes. README.md says what is not in here.
 *
 *   spin -a attempts.pml          the Source; -DTARGET: the Target
 *     -DMUTANT_X                  one mistake; see below
 *   gcc -O1 -w -o pan pan.c && ./pan -a -m100000 -N three_per_code
 *
 * A verdict is what a guess is worth: the Source's answer to PROOF, or the
 * Target's PROOF itself, which a false Source compares with its own guess.
 */
#define PER_CODE 3
#define PER_WINDOW 9
#define DAY 24                  /* hours that a wrong attempt counts */

#ifdef MUTANT_COUNT_AFTER_VERDICT
#define CHECKED SAY
#define AFTER_COUNT OUT
#define AFTER_SAID COUNT
#else
#define CHECKED COUNT
#define AFTER_COUNT SAY
#define AFTER_SAID OUT
#endif
#ifdef MUTANT_TWO_AT_ONCE       /* no single place in the proof stage */
#define FREE 1
#else
#define FREE (!busy)
#endif

/* Durable. */
byte counted;                   /* wrong attempts within the window, until proven right */
bit locked;
byte level;                     /* locks since the log was last empty: 1, 2, 4, 8, 16 h */
/* RAM at the Source, where code and count die together; at the Target, where
 * the same code may be typed again, the count is durable (by a tag of the code). */
byte tries;                     /* attempts that this code had */
bit code;                       /* a code is in force */
bit busy;                       /* the one place in the proof stage is taken */

mtype = { OUT, CHECK, COUNT, SAY, TAKE_BACK };
mtype at[2] = OUT;              /* two connections of the other side */

/* Ghosts. */
byte ofCode, ofWindow;          /* verdicts that helped nobody but a guesser */
byte waits, hours;              /* locks sat out in this window, and the hours that took */

inline leave(id) { at[id] = OUT; busy = 0 }

proctype session(byte id) {
	do
	:: atomic { at[id] == OUT && code && FREE -> busy = 1; at[id] = CHECK }
	:: atomic { at[id] == CHECK ->
		if
#ifndef MUTANT_LOCK_NOT_CHECKED
		:: locked -> leave(id)
#endif
		:: tries >= PER_CODE -> code = 0; leave(id)
#ifdef MUTANT_LOCK_NOT_CHECKED
		:: tries < PER_CODE -> at[id] = CHECKED
#else
		:: !locked && tries < PER_CODE -> at[id] = CHECKED
#endif
		fi }
	:: atomic { at[id] == COUNT ->          /* durable before the next step */
		counted++; tries++;
		if
		:: counted >= PER_WINDOW -> locked = 1; level++
		:: else
		fi;
		if
		:: AFTER_COUNT == OUT -> leave(id)
		:: else -> at[id] = AFTER_COUNT
		fi }
	:: atomic { at[id] == SAY ->            /* wrong */
		ofCode++; ofWindow++;
		if
		:: tries >= PER_CODE -> code = 0        /* killed */
		:: else
		fi;
		if
		:: AFTER_SAID == OUT -> leave(id)
		:: else -> at[id] = AFTER_SAID
		fi }
	:: atomic { at[id] == SAY && AFTER_SAID == OUT -> at[id] = TAKE_BACK } /* right: the true peer */
	:: atomic { at[id] == TAKE_BACK ->
		if
		:: counted >= PER_WINDOW && locked -> locked = 0; level--
		:: else
		fi;
		counted--; code = 0;            /* one code, one transaction */
		leave(id) }
	od
}

#define QUIET (at[0] == OUT && at[1] == OUT)

inline newWindow() { counted = 0; locked = 0; level = 0; ofWindow = 0; waits = 0; hours = 0 }

active proctype world() {
	atomic { run session(0); run session(1) };
	do
	:: atomic { QUIET && !code -> code = 1; tries = 0; ofCode = 0;     /* another code */
#ifdef MUTANT_RESET_AT_ARM
		counted = 0; locked = 0; level = 0
#endif
		}
#ifdef TARGET
	:: atomic { QUIET && !code -> code = 1 }                           /* the same one, typed again */
#endif
	:: atomic { code || !QUIET -> at[0] = OUT; at[1] = OUT; busy = 0;  /* power cut */
#ifdef MUTANT_COUNT_IN_RAM
		counted = 0; locked = 0; level = 0; tries = 0;
#endif
#ifndef TARGET
		tries = 0;
#ifndef MUTANT_CODE_SURVIVES
		ofCode = 0;
#endif
#endif
#ifndef MUTANT_CODE_SURVIVES
		code = 0
#endif
		}
	:: atomic { QUIET && locked ->                                     /* a lock is sat out */
		hours = hours + (1 << (level - 1)); waits++; locked = 0;
		if
		:: hours >= DAY -> newWindow()
		:: else
		fi }
	:: atomic { QUIET && !locked && counted -> newWindow() }           /* a day passes */
	:: atomic { QUIET && (locked || counted) -> newWindow() }          /* an administrator resets */
	od
}

/* No code is worth more than three guesses, whatever happens to the power. */
ltl three_per_code { [] (ofCode <= PER_CODE) }
/* Nine in a window, then one for each lock that was sat out ... */
ltl nine_then_locks { [] (ofWindow <= PER_WINDOW + waits) }
/* ... of which a day has room for four: 1 + 2 + 4 + 8 hours. */
ltl thirteen_a_day { [] (ofWindow <= 13) }
/* What was said is on disk. */
ltl count_first { [] (ofWindow <= counted) }
