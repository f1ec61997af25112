package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// tidyUsage makes the commands that cobra adds by itself as strict as ours, says wrong
// flag values in plain words, and keeps the shell from offering files where none are taken.
func tidyUsage(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return plainFlagError(err) })
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			group(c)
		case "help":
			c.Args = knownCommand
		}
	}
	offerNoFiles(root)
}

// knownCommand refuses help about what does not exist.
func knownCommand(c *cobra.Command, args []string) error {
	_, rest, err := c.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("help %s: there is no such command", strings.Join(args, " "))
	}
	return nil
}

// plainFlagError says what a flag wants, rather than which function did not like its value.
func plainFlagError(err error) error {
	wrong, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	flag, must := wrong.GetFlag(), ""
	switch flag.Value.Type() {
	case "int", "int64":
		must = "must be a whole number"
	case "float64":
		must = "must be a number"
	case "bool":
		must = "must be true or false"
	default:
		must = wrong.Unwrap().Error()
	}
	return fmt.Errorf("--%s %q: %s", flag.Name, wrong.GetValue(), must)
}

// offerNoFiles turns file names off for every command that takes no argument.
func offerNoFiles(c *cobra.Command) {
	if c.ValidArgsFunction == nil && c.Args != nil && c.Args(c, []string{"x"}) != nil {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range c.Commands() {
		offerNoFiles(sub)
	}
}
