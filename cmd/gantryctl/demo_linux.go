package main

import (
	"github.com/spf13/cobra"
)

func demoCommand(n *node) *cobra.Command { return &cobra.Command{Use: "demo"} }
