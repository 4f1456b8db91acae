package doctor

import (
	"fmt"
	"strings"
)

// A Class is what a finding is about. The list only grows.
type Class string

// The classes. Classes says what each means.
const (
	ChipAbsent    Class = "chip-absent"
	ChipBusy      Class = "chip-busy"
	ChipSilent    Class = "chip-silent"
	OwnerPassword Class = "owner-password"
	LockedOut     Class = "locked-out"
	RootReplaced  Class = "root-replaced"
	BootChanged   Class = "boot-changed"
	NotMeasured   Class = "boot-not-measured"
	Passphrase    Class = "passphrase"
	CounterGone   Class = "counter-gone"
	StoreDamaged  Class = "store-damaged"
	StoreOlder    Class = "store-older"
	StoreFallback Class = "store-fallback"
	StoreRefused  Class = "store-refused"
	DiskFull      Class = "disk-full"
	FlashRisk     Class = "flash-risk"
	Clock         Class = "clock"
	Certificate   Class = "certificate"
	Server        Class = "server"
	UnitWeak      Class = "unit-weak"
	AuditBroken   Class = "audit-broken"
	CopyStale     Class = "copy-stale"
	DaemonDown    Class = "daemon-down"
	CountersTaken Class = "counters-taken"
	CopyOpen      Class = "copy-open"
	KeysStaged    Class = "keys-staged"
	KeysAway      Class = "keys-away"
	KeysTwice     Class = "keys-twice"
)

// ClassInfo is one line of the table in the help text and in docs/doctor.md.
type ClassInfo struct {
	Class       Class
	Exit        int // 20 to 59; the kinds of problems have 1 to 9 and 130
	Cause       string
	Consequence string
	Next        string
}

// Classes is the one table, in the order of the codes. Of several findings of
// one severity the first in it decides the exit code.
func Classes() []ClassInfo {
	return append(append(keyClasses(), machineClasses()...), copyClasses()...)
}

// keyClasses are about key storage and store.
func keyClasses() []ClassInfo {
	return []ClassInfo{
		{ChipAbsent, 20, "the TPM is not there, is switched off in firmware, or its driver or emulator is not loaded",
			"what is in memory goes on; nothing can be signed, copied or, after a restart, opened",
			"enable the TPM in the firmware's setup, load its driver, or correct [hsm] path; the daemon connects by itself"},
		{ChipBusy, 21, "another program holds the TPM's device to itself",
			"as with an absent chip, until that program lets go",
			"stop the other program, or let both use /dev/tpmrm0, which can be shared"},
		{ChipSilent, 22, "the TPM does not answer in time, or answers that it has failed",
			"as with an absent chip; each use waits for its deadline",
			"nothing at first, it is tried again; if it stays, take the machine's power away for a minute"},
		{OwnerPassword, 23, "somebody set a password on the TPM's owner hierarchy, and no root key of ours stands in it",
			"the storage root key cannot be made, so nothing opens",
			"take the password away (tpm2_changeauth -c owner -p OLD), or clear the TPM and recover the terminal: kagimori recovery start"},
		{LockedOut, 24, "too many wrong passwords or PINs were given to the TPM, by whichever program",
			"PINs are refused until it recovers; the terminal's own keys are exempt and go on working",
			"wait for the time named, or reset it: kagimori tpm reset-lockout; find out who guesses"},
		{RootReplaced, 25, "this is another TPM or device secret than the one that sealed the store, or it was cleared",
			"the store does not open: no identity, no credentials",
			"put the old one back, or recover the terminal onto this one: kagimori recovery import FILE, or kagimori recovery start"},
		{BootChanged, 26, "firmware, boot loader or kernel are not those that the store key was sealed to",
			"the store does not open under this boot",
			"boot the system that it was sealed to, have this one approved (kagimori boot show), or recover: kagimori recovery start"},
		{NotMeasured, 27, "the PCRs to bind to hold zeros, or ones: nothing measures the boot of this board",
			"keys are bound to the chip only; another system booted on this board could use them",
			"switch measured boot on in firmware and boot loader, or take [hsm] boot registers out of the configuration"},
		{Passphrase, 28, "key storage is sealed under a passphrase that nobody has given since the start",
			"nothing opens until somebody does",
			"give it: kagimori unlock"},
		{CounterGone, 29, "the counter that shows older store files is gone or was turned back: the TPM was cleared, or somebody removed it",
			"the store is not opened, or could be replaced by an older copy of itself without notice",
			"if nobody has tampered, accept this store file: kagimori recovery accept-older"},
		{StoreDamaged, 30, "the store file is not what was written: the disk or somebody changed it, and no copy was good",
			"no identity, no credentials",
			"keep the file for inspection; put a backup back, or recover the terminal: kagimori recovery start"},
		{StoreOlder, 31, "the store file is older than the last one that was written",
			"it is not opened: it may hold keys that were erased, and has forgotten what was obeyed since",
			"put the newest file back, or accept this one: kagimori recovery accept-older"},
		{StoreFallback, 32, "the store file was not good: its second copy took its place, or a file that an administrator accepted or recovered",
			"what was written since that one was made is lost, as the text says",
			"let it connect to the server, which puts things right; keep the broken file for inspection; look at the disk"},
		{StoreRefused, 33, "the state directory or a secret file cannot be used as it is: rights, a disk that is read-only, another daemon, a newer release",
			"the store does not open",
			"do what the text says"},
	}
}

// machineClasses are about what is around them.
func machineClasses() []ClassInfo {
	return []ClassInfo{
		{DiskFull, 34, "the disk under the state directory is full, or nearly",
			"new keys, results and log entries cannot be kept; what is there stays good",
			"free space on it; the daemon goes on by itself"},
		{FlashRisk, 35, "a file system that may lose what it has acknowledged: ext4 with fast_commit on Linux 5.10 before 5.10.94 and 5.11 to 5.16 but for 5.15.27 and later, a network, overlay or memory file system",
			"a power cut may damage the store, or lose it",
			"mount it without fast_commit or update the kernel; keep the state directory on a local disk (state_dir)"},
		{Clock, 36, "the system clock shows a time that cannot be: before one that is certainly over, or far after",
			"certificates are judged at the last known time until a server tells the present; nothing is deleted; records have no date",
			"set the clock, or its battery; or let it connect to the server"},
		{Certificate, 37, "a certificate has expired, or should have been renewed by now",
			"servers and gates refuse it once it has expired",
			"bring the server in reach: an identity renews itself; a credential is issued anew there"},
		{Server, 38, "the management server cannot be reached, or does not accept this terminal",
			"no commands, no renewals, no reports until it can; relays and key copies go on",
			"look at network and server; if it refuses, the text says what to do; it connects by itself"},
		{UnitWeak, 39, "the daemon runs with less confinement than the shipped unit gives it",
			"a hole in the daemon, or a core dump, reaches farther than it should",
			"take the drop-in away that loosens it (systemctl cat kagimori), or start it by its unit"},
		{AuditBroken, 40, "the audit log contradicts itself or what key storage signed about it, or there is a gap in what it signed",
			"somebody, or a fault, changed what is told of the past; keys go on working",
			"keep the state directory for inspection; see: kagimori audit verify"},
		{CopyStale, 41, "the last key change is not finished: the second copy or the counter could not follow",
			"everything is in the store file; further key changes are refused until it is finished",
			"free space on the disk, or bring the chip back; the daemon finishes it by itself"},
		{DaemonDown, 42, "the daemon does not run",
			"no relays, no key copies, no link to the server",
			"start it: systemctl start kagimori; why it stopped: journalctl -u kagimori"},
		{CountersTaken, 43, "the TPM holds counters of many stores: of other programs, or of earlier ones that were removed by hand",
			"none yet; once no place is free, a new store is not protected against older files",
			"see what is there (tpm2_getcap handles-nv-index, docs/tpm.md), and remove what no store uses any more: tpm2_nvundefine -C o HANDLE"},
	}
}

// copyClasses are about key copies that are not over.
func copyClasses() []ClassInfo {
	return []ClassInfo{
		{CopyOpen, 44, "a key copy is open: the two terminals have lost sight of each other before both knew that it is over",
			"none for the keys in use; it goes on when the two see each other, and no code is needed",
			"leave both terminals on; see: kagimori keycopy list"},
		{KeysStaged, 45, "keys have come here and wait for the old terminal to give them up",
			"this terminal does not use them yet, and takes no other copy",
			"bring the old terminal in reach; only if it is gone for good: kagimori keycopy activate TXN"},
		{KeysAway, 46, "keys moved to another terminal that has not said that it uses them",
			"this terminal may not use them any more",
			"bring the new terminal in reach; only if it is gone for good: kagimori keycopy reclaim TXN"},
		{KeysTwice, 47, "both terminals use keys that moved: somebody took the other one for gone, and it was not",
			"two devices pass for one at the service",
			"take one of the two out of service, or have its credentials issued anew: kagimori-server credential issue"},
	}
}

// Help is the table for the verb's help text and man page.
func Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %3d  nothing is wrong, or notes only\n", 0)
	for _, c := range Classes() {
		fmt.Fprintf(&b, "  %3d  %s\n", c.Exit, c.Class)
	}
	return strings.TrimRight(b.String(), "\n")
}
