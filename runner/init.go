package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"dma/internal/passwd"
	"dma/spooldir"
)

// runInit makes or repairs the spool: as root the one that all users share, and
// otherwise, or with --one-uid, the one of the uid that runs it.
func runInit(c *call) error {
	oneUID := false
	for _, a := range c.args {
		if a != "--one-uid" {
			return exitf(exitUsage, "init knows --one-uid and no %q", a)
		}
		oneUID = true
	}
	dir := c.config.SpoolDir
	if os.Geteuid() == 0 && !oneUID {
		_, err := os.Lstat(filepath.Join(dir, oneUIDFile))
		if errors.Is(err, fs.ErrNotExist) {
			return initShared(c, dir)
		}
		if err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	if err := spooldir.Init(dir); err != nil {
		return err
	}
	if oneUID {
		f, err := os.OpenFile(filepath.Join(dir, oneUIDFile), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.stdio.Out, "spool %s is ready; uid %d serves it\n", dir, os.Geteuid())
	return nil
}

// initShared makes or repairs the spool that all users share. One that another
// user serves alone is left to that user.
func initShared(c *call, dir string) error {
	ids, err := identities()
	if err != nil {
		return err
	}
	if err := strangers(ids, "/etc/passwd", "/etc/group"); err != nil {
		return err
	}
	if info, err := os.Lstat(dir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != ids.QueueUID {
			return exitf(exitNoPerm, "spool %s belongs to uid %d, who serves it alone; run init as that user, or move it away", dir, st.Uid)
		}
	}
	if err := spooldir.InitShared(dir, ids); err != nil {
		return err
	}
	fmt.Fprintf(c.stdio.Out, "spool %s is ready; the users %s and %s serve it\n", dir, spooldir.QueueUser, spooldir.NetUser)
	return nil
}

// identityTime bounds the look for a user: the sources may be remote.
const identityTime = 30 * time.Second

// identities looks up the users and the group of a shared spool.
func identities() (spooldir.Identities, error) {
	ctx, cancel := context.WithTimeout(context.Background(), identityTime)
	defer cancel()
	var ids spooldir.Identities
	source := passwd.System()
	for _, u := range []struct {
		name     string
		uid, gid *int
	}{
		{spooldir.QueueUser, &ids.QueueUID, &ids.QueueGID},
		{spooldir.NetUser, &ids.NetUID, &ids.NetGID},
	} {
		found, err := source.Lookup(ctx, u.name)
		if errors.Is(err, passwd.ErrUnknown) {
			return ids, missing("user", u.name)
		}
		if err != nil {
			return ids, fmt.Errorf("look up user %s: %w", u.name, err)
		}
		*u.uid, *u.gid = found.UID, found.GID
	}
	g, err := user.LookupGroup(spooldir.SubmitGroup)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return ids, missing("group", spooldir.SubmitGroup)
	}
	if err == nil {
		ids.SubmitGID, err = strconv.Atoi(g.Gid)
	}
	if err != nil {
		return ids, fmt.Errorf("look up group %s: %w", spooldir.SubmitGroup, err)
	}
	return ids, nil
}

// missing says how to get what a shared spool needs.
func missing(kind, name string) error {
	return exitf(exitNoPerm, `there is no %s %s, and a spool for all users needs the users dma and dmanet and the group dmasubmit; make them with scripts/install, or on Linux with
  groupadd --system dmasubmit
  useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin dma
  useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin dmanet
or run init as the one user who is to serve the spool; or accept that everything runs as root, commands of users too, with: dma-runner init --one-uid`, kind, name)
}
