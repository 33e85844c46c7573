package powercut

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
)

// devices says whether the devices are there that sessions need.
func devices() error {
	for dev, remedy := range map[string]string{"/dev/fuse": "modprobe fuse", "/dev/loop-control": "modprobe loop"} {
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			return &crashtest.Missing{What: dev, Remedy: remedy}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
		unix.Close(fd)
	}
	return nil
}

// volume is a loop device over a served disk, perhaps with a mounted file system.
type volume struct {
	srv  *server
	loop *os.File
	dir  string // "" if not mounted
}

// attach serves d at file and makes a loop device of it, which goes away with
// its last user.
func attach(d *disk, file string) (*volume, error) {
	srv, err := serve(d, file)
	if err != nil {
		return nil, err
	}
	loop, err := loopOver(file)
	if err != nil {
		return nil, errors.Join(err, srv.close())
	}
	return &volume{srv: srv, loop: loop}, nil
}

func (v *volume) device() string { return v.loop.Name() }

func (v *volume) mount(dir, fstype, options string) error {
	if err := unix.Mount(v.loop.Name(), dir, fstype, unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", fstype, err)
	}
	v.dir = dir
	return nil
}

func (v *volume) close() error {
	var err error
	if v.dir != "" {
		err = unmount(v.dir)
	}
	return errors.Join(err, v.loop.Close(), v.srv.close())
}

// unmount gives processes that were just killed two seconds to let go.
func unmount(dir string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			return fmt.Errorf("unmount: %w (has every process of the workload ended?)", err)
		}
		return nil
	}
}

func loopOver(file string) (*os.File, error) {
	// os.OpenFile would register the FUSE file with Go's poller: epoll_ctl asks
	// this very process for FUSE_POLL and stands in the way of the answer.
	back, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the served disk: %w", err)
	}
	defer unix.Close(back)
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/loop-control: %w", err)
	}
	defer unix.Close(ctl)
	for range 50 { // someone else may take the free one
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		dev := fmt.Sprintf("/dev/loop%d", n)
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dev, err)
		}
		cfg := unix.LoopConfig{Fd: uint32(back), Size: sector}
		cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(fd, &cfg)
		if err == nil {
			return os.NewFile(uintptr(fd), dev), nil
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("LOOP_CONFIGURE %s: %w", dev, err)
		}
	}
	return nil, errors.New("no free loop device")
}
