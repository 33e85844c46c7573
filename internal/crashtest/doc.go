// Package crashtest, with the packages below it, tests what is left of a mail
// queue when programs are killed, disks fail or fill up, and power is cut.
//
//	sysfault  kills or disturbs a real program at its N-th file system call
//	powercut  rebuilds every disk that a power cut could have left
//	tinyfs    file systems that are soon full
//
// This package holds what the latter two share: Main puts the tests of a
// package into a private mount namespace, Private says whether it did, Need
// decides between running, skipping and failing.
//
//	func TestMain(m *testing.M) { crashtest.Main(m) }
//
// # Which one for which promise
//
// A kill loses nothing that the kernel has: the page cache survives. So a missing
// fsync shows only under powercut, and a wrong order of steps, a lock that is not
// released or a clean-up that is not done shows best under sysfault, which is
// faster, needs no root and reaches each step by number:
//
//	plan := sysfault.Plan{Scope: sysfault.Scope{Roots: []string{spool}}}
//	sysfault.Enumerate(t, plan,
//		func(t *testing.T) *exec.Cmd { ...; return exec.Command(dma, ...) },
//		func(t *testing.T, n int, call sysfault.Call, res sysfault.Result) {
//			// recover, then: acknowledged means delivered once, else nothing
//		})
//
// Under powercut the test notes what was promised as soon as it was, and each
// image has to honour the promises that were made before its cut:
//
//	s := powercut.New(t, "ext4")
//	s.Prepare(makeSpool)
//	dir := s.Mount()
//	... run programs on dir; after each success: s.Mark(id) ...
//	s.Replay(powercut.Plan{Max: 300}, func(img powercut.Image) error {
//		// recover img.Dir, then look for each id of img.Marks
//	})
//
// The two combine: a program may run under sysfault on a powercut directory, be
// killed at a call, and the power be cut afterwards.
//
// # Traps
//
//   - A checker that finds nothing proves nothing. Plant the bug (drop an fsync,
//     swap two steps) and see it caught. This package's own tests do so.
//   - Half-done changes of one process reach the disk by another's fsync. Let
//     something else sync in between, or a commit without its data is never seen.
//   - Between kill and exit there is a window: a program killed after its commit
//     has committed, though it reported nothing. Check "reported, then kept", not
//     "kept, then reported".
//   - "strace -e inject=...:when=N" counts per thread, and a Go program changes
//     threads: N means another call each time. sysfault counts globally; still,
//     two goroutines may make their calls in either order, so judge a run by the
//     Call that was hit, not by its number.
//   - sysfault.Run returns when all descendants have ended, a detached drain too.
//     A service has to be told to end: Scope.Started, a kill at a call, or ctx.
//   - A kill of the tree is at one moment for calls in scope: none begins later. A
//     call that another thread had begun may still finish.
//   - Injected errors come before the call, so a failing fsync has synced nothing
//     and a failing write has written nothing. A real file system may have done
//     half of it; for that use powercut's SetFaults. It reports a lost write at one
//     fsync only: the next returns nil, and the data is gone.
//   - Short cuts a single write; Go's os.File.Write goes on with the rest, so the
//     program notices only if it calls write(2) itself or the rest fails.
//   - Tracing takes the effect of set-user-ID and set-group-ID bits away, except
//     for what root started as root: run "setpriv --reuid=U ... sendmail", without
//     SysProcAttr.Credential. powercut mounts honour the bits, tinyfs does not.
//   - powercut serves its disk from the test process. Code of that process must
//     not wait for the disk where the Go scheduler cannot go on: no exec.Cmd with
//     Dir or its program below the mount point, no mapping of a file there.
//   - Everything below a powercut or tinyfs mount must have ended before the test
//     does; a mount that is busy fails the test.
//   - A tmpfs never refuses a rename. ext4 and xfs do when they are full, and never
//     an unlink: fill a powercut directory with tinyfs.Fill.
//   - Neither knows mappings: what is written through a shared mmap is not a call.
//
// System tests run with CI=true or DMA_SYSTEM_TESTS=1, as root, on Linux. They
// need e2fsprogs and xfsprogs, and fail under root without.
package crashtest
