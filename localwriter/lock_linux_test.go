package localwriter

import "testing"

// TestKernelLock: one kernel lock is held during a session, the one that was
// asked for, and none behind it.
func TestKernelLock(t *testing.T) {
	for _, flock := range []bool{false, true} {
		path := mboxPath(t)
		box := testMbox(path)
		box.Flock = flock
		s := openMbox(t, box)
		if held, want := heldLocks(t, path), "["+kernelLock(flock)+"]"; held != want {
			t.Errorf("held: %s, want %s", held, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if held := heldLocks(t, path); held != "[]" {
			t.Errorf("after a session with %s: %s", kernelLock(flock), held)
		}
	}
}
