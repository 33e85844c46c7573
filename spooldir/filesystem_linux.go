package spooldir

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// statFileSystem looks at the file system that path stands on. What it cannot
// find out it leaves open: it never fails.
func statFileSystem(path string) FileSystem {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return FileSystem{}
	}
	var f FileSystem
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC: // ext2 and ext3 have the same number
		f.Type, f.Ordered = "ext4", true
	case unix.XFS_SUPER_MAGIC:
		f.Type, f.Ordered = "xfs", true
	case unix.BTRFS_SUPER_MAGIC:
		f.Type = "btrfs"
	case unix.TMPFS_MAGIC:
		f.Type = "tmpfs"
		f.Warnings = append(f.Warnings, "the spool is on tmpfs: mail does not survive a restart of the machine; move SPOOLDIR to a disk")
	case unix.NFS_SUPER_MAGIC:
		f.Type = "nfs"
	case unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC:
		f.Type = "cifs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		f.Type = "overlay"
	case unix.FUSE_SUPER_MAGIC:
		f.Type = "fuse"
	}
	if f.Type == "nfs" || f.Type == "cifs" {
		f.Warnings = append(f.Warnings, "the spool is on a network file system ("+f.Type+"): locks, events and durability are those of the server; move SPOOLDIR to a local disk")
	}
	mount, options := mountOf(path)
	f.Warnings = append(f.Warnings, optionWarnings(f.Type, mount, options)...)
	if f.Type == "ext4" && strings.HasPrefix(mount.source, "/dev/") {
		if proc := ext4Options(mount.source); proc != "" {
			f.Warnings = append(f.Warnings, ext4Warnings(proc)...)
			f.Ordered = strings.Contains(proc, "data=")
		}
	}
	return f
}

// reliableLocks reports whether a lock on an open file is seen by whoever else has
// that file: both are processes of this kernel, which keeps the locks itself. What is
// reached through another kernel is none of these, on its side.
func reliableLocks(fd int) bool {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

type mount struct{ point, fstype, source string }

// mountOf finds the mount of path and its super block options.
func mountOf(path string) (m mount, options string) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mount{}, ""
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		point := unescapeMount(l[4])
		if point != "/" && path != point && !strings.HasPrefix(path, point+"/") {
			continue
		}
		if len(point) >= len(m.point) { // later and longer mounts cover earlier ones
			m = mount{point, r[0], r[1]}
			options = l[5] + "," + r[2]
		}
	}
	return m, options
}

// unescapeMount undoes the \ooo of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func optionWarnings(fstype string, m mount, options string) []string {
	var w []string
	for _, o := range strings.Split(options, ",") {
		switch {
		case o == "nobarrier" || o == "barrier=0":
			w = append(w, "the spool's file system is mounted with "+o+": a power cut can lose accepted mail; mount it with barriers")
		case o == "volatile" && fstype == "overlay":
			w = append(w, "the spool is on an overlay mounted volatile: a crash loses accepted mail; give it a volume of its own")
		}
	}
	if m.fstype == "ext2" {
		w = append(w, "the spool is on ext2, which has no journal: a crash can lose accepted mail; use ext4 or xfs")
	}
	return w
}

func ext4Options(source string) string {
	if real, err := filepath.EvalSymlinks(source); err == nil {
		source = real
	}
	data, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(source) + "/options")
	if err != nil {
		return ""
	}
	return string(data)
}

// ext4Warnings reads the options that the kernel has in force.
func ext4Warnings(options string) []string {
	var w []string
	for _, o := range strings.Split(options, "\n") {
		switch o {
		case "fc_debug_force", "fast_commit":
			w = append(w, "the spool's ext4 has fast_commit, which loses synced names in a power cut; turn it off with tune2fs -O ^fast_commit")
		case "nobarrier":
			w = append(w, "the spool's ext4 is mounted with nobarrier: a power cut can lose accepted mail; mount it with barriers")
		}
	}
	if !strings.Contains(options, "data=") { // every journal has a mode
		w = append(w, "the spool's ext4 has no journal: a crash can lose accepted mail; turn it on with tune2fs -O has_journal")
	}
	return w
}

func statRoom(path string) (Room, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Room{}, err
	}
	return Room{
		Bytes: int64(st.Bavail) * st.Bsize, TotalBytes: int64(st.Blocks) * st.Bsize,
		Inodes: int64(st.Ffree), TotalInodes: int64(st.Files),
	}, nil
}
