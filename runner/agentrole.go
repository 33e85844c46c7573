package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"dma/agent"
	"dma/internal/wire"

	"golang.org/x/sys/unix"
)

// The descriptors of an agent process, beside 0 to 2. No command gets any of
// them. Descriptor 6 is the lock of its user and role, which is only held.
const (
	agentConn    = 3 // to the queue process
	agentSetup   = 4 // agent.Setup, to be read to the end
	agentLife    = 5 // ends with the parent
	agentMailbox = 7 // of root, opened
)

// agentGrace is how long an agent has after the end of its parent to kill the
// command that it runs, and take back half a message.
const agentGrace = 5 * time.Second

// runAgentRole is the whole of an agent process, which the parent starts. It
// returns the exit code.
func runAgentRole() int {
	unix.Umask(0o077)
	for fd := agentConn; fd <= agentMailbox; fd++ {
		unix.CloseOnExec(fd)
	}
	conn, err := wire.Inherited(agentConn)
	if err != nil {
		return exitUsage
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	life := os.NewFile(agentLife, "life")
	if life == nil {
		return exitUsage
	}
	go func() {
		io.Copy(io.Discard, life)
		cancel()
		time.Sleep(agentGrace)
		os.Exit(exitTempfail)
	}()
	if err := serveAgent(ctx, conn); err != nil {
		if ctx.Err() == nil {
			agent.LastWord(conn, err)
		}
		return exitTempfail
	}
	return exitOK
}

// serveAgent does what the setup says, once it is sure of what the process is.
func serveAgent(ctx context.Context, conn *wire.Conn) error {
	in := os.NewFile(agentSetup, "setup")
	if in == nil {
		return errors.New("no setup")
	}
	setup, err := agent.ReadSetup(in)
	in.Close()
	if err != nil {
		return err
	}
	if err := confine(setup.Role); err != nil {
		return err
	}
	if err := dropped(setup.UID, setup.GID, setup.Groups); err != nil {
		return err
	}
	var mailbox *os.File
	if setup.MailFile {
		if mailbox = os.NewFile(agentMailbox, "mailbox"); mailbox == nil {
			return errors.New("no mailbox")
		}
	}
	own := agent.NewOwn(setup, mailbox)
	// Who works for root is somebody else, and appends to an open file.
	return agent.Serve(ctx, conn, own, setup.User, setup.Role)
}

// confine gives up what an agent of a role never needs.
func confine(role agent.Role) error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit of cores: %w", err)
	}
	if role == agent.MailboxRole {
		// It has a group that its user has not.
		if err := untraceable(); err != nil {
			return err
		}
	}
	return nil
}

// dropped returns nil if this process is the user and groups given, exactly, and
// can never be anything else.
func dropped(uid, gid int, groups []int) error {
	if os.Getuid() != uid || os.Geteuid() != uid || os.Getgid() != gid || os.Getegid() != gid {
		return fmt.Errorf("the process is uid %d (%d) and gid %d (%d), and should be %d and %d", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), uid, gid)
	}
	have, err := os.Getgroups()
	if err != nil {
		return fmt.Errorf("groups: %w", err)
	}
	// Some systems list the group itself among them, and some do not.
	set := func(list []int) string {
		list = slices.DeleteFunc(slices.Clone(list), func(g int) bool { return g == gid })
		slices.Sort(list)
		return strings.Trim(fmt.Sprint(slices.Compact(list)), "[]")
	}
	if set(have) != set(groups) {
		return fmt.Errorf("the process has the groups %s, and should have %s", set(have), set(groups))
	}
	if uid == 0 || syscall.Setuid(0) == nil || syscall.Setreuid(-1, 0) == nil {
		return errors.New("the process can be root")
	}
	return noCapabilities()
}
