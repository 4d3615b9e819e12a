#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { settingsHelp } from '../config/help.js'
import { ConfigError, loadConfigFromProcess } from '../config/load.js'
import type { Config } from '../config/schema.js'
import { DataFolderInUseError } from '../storage/data-folder.js'
import { NewerSchemaError } from '../storage/migrations.js'
import { StartError, serve } from './commands/serve.js'
import { describeStartFailure } from './commands/start-failure.js'
import { version } from './version.js'

/** Exit codes: the server could not start or failed; what was written is wrong. */
const failed = 1
const misused = 2

const usage = `Boathouse ${version}: a private Docker and OCI registry

  boathouse serve [--config FILE] [--listen HOST:PORT] [--data DIR]
  boathouse --help
  boathouse --version

Every setting can stand in the YAML file of --config, and in a variable; flags win over variables, variables
over the file.

${settingsHelp()}`

/** Runs the command line. @returns the exit code */
async function main(args: readonly string[]): Promise<number> {
  let parsed: ReturnType<typeof parseCommandLine>
  try {
    parsed = parseCommandLine(args)
  } catch (error) {
    return complain(error instanceof Error ? error.message : String(error))
  }
  const { values, positionals } = parsed
  if (values.help === true) return say(usage)
  if (values.version === true) return say(version)
  const [command, ...others] = positionals
  if (command !== 'serve' || others.length > 0) {
    return complain(
      command === undefined ? 'Name a command.' : `There is no command "${positionals.join(' ')}".`,
    )
  }
  return runServe(values)
}

function parseCommandLine(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      config: { type: 'string' },
      listen: { type: 'string' },
      data: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
      version: { type: 'boolean', short: 'v' },
    },
  })
}

async function runServe(flags: { config?: string; listen?: string; data?: string }): Promise<number> {
  let config: Config
  try {
    config = loadConfigFromProcess(flags)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    process.stderr.write(`${error.faults.join('\n')}\n`)
    return misused
  }
  try {
    return await serve(config)
  } catch (error) {
    const isExpected =
      error instanceof StartError ||
      error instanceof DataFolderInUseError ||
      error instanceof NewerSchemaError
    const text = isExpected ? error.message : describeStartFailure(error, config)
    process.stderr.write(`${text}\n`)
    return failed
  }
}

function say(text: string): number {
  process.stdout.write(`${text}\n`)
  return 0
}

function complain(text: string): number {
  process.stderr.write(`${text} "boathouse --help" shows what there is.\n`)
  return misused
}

process.exit(await main(process.argv.slice(2)))
