//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

var errNotLinux = errors.New("the suite runs on Linux only")

func upCommand(*node) *cobra.Command {
	return &cobra.Command{
		Use: "up", Short: "Run the suite here, without systemd", Annotations: endless,
		RunE: func(*cobra.Command, []string) error { return errNotLinux },
	}
}

func demoCommand(*node) *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "See the suite at work", Annotations: endless,
		RunE: func(*cobra.Command, []string) error { return errNotLinux },
	}
}
