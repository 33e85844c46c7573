//go:build !linux

package powercut

import "errors"

func devices() error { return errors.ErrUnsupported }

type volume struct{}

func attach(*disk, string) (*volume, error)         { return nil, errors.ErrUnsupported }
func (*volume) device() string                      { return "" }
func (*volume) mount(dir, fs, options string) error { return errors.ErrUnsupported }
func (*volume) close() error                        { return nil }
