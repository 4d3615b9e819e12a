#!/usr/bin/env node
import { ConfigError } from '../config/load.js'
import { type Command, Misuse, note, splitCommand } from './commands/command.js'
import { describeFailure } from './commands/failure.js'
import { hasLostTerminal } from './commands/hangup.js'
import { programName } from './commands/own-name.js'
import { version } from './version.js'

/** Exit codes: it could not be done; what was written is wrong. */
const failed = 1
const misused = 2

/** Commands are loaded when they are called: most need little of the program. */
const commands: Readonly<Record<string, () => Promise<Command>>> = {
  serve: async () => (await import('./commands/run-server.js')).runServer,
  user: async () => (await import('./commands/user.js')).user,
  token: async () => (await import('./commands/token.js')).token,
  grant: async () => (await import('./commands/grant.js')).grant,
  revoke: async () => (await import('./commands/grant.js')).revoke,
  access: async () => (await import('./commands/access.js')).access,
  mirror: async () => (await import('./commands/mirror.js')).mirror,
  tag: async () => (await import('./commands/tag.js')).tag,
  retention: async () => (await import('./commands/retention.js')).retention,
  gc: async () => (await import('./commands/gc.js')).gc,
  verify: async () => (await import('./commands/verify.js')).verify,
  backup: async () => (await import('./commands/backup.js')).backup,
  restore: async () => (await import('./commands/restore.js')).restore,
  quota: async () => (await import('./commands/quota.js')).quota,
  uploads: async () => (await import('./commands/uploads.js')).uploads,
  key: async () => (await import('./commands/key.js')).key,
  health: async () => (await import('./commands/health.js')).health,
}

const usage = `Boathouse ${version}: a private Docker and OCI registry

  boathouse serve    run the registry
  boathouse user     add|passwd|disable|enable|admin|groups|remove|list|import: who may log in
  boathouse token    create|list|revoke: passwords for machines
  boathouse grant    PERMISSION PATTERN --to WHOM: allow somebody something
  boathouse revoke   PERMISSION PATTERN --to WHOM: take a grant back
  boathouse access   list|explain|export|apply: who may do what, and why
  boathouse mirror   sync|status: fetch ahead what mirrors are to have, and how their upstreams do
  boathouse tag      list|history|restore: what tags point at and pointed at, and bringing them back
  boathouse retention [--dry-run] [PATTERN]: remove the tags that no rule keeps
  boathouse gc       [--dry-run] [--explain DIGEST]: remove from the disk what nobody needs
  boathouse verify   [REPOSITORY...]: compare what is stored with its digests
  boathouse backup   DIR: copy everything to another folder, while the server runs
  boathouse restore  DIR | --index [SNAPSHOT]: bring a backup, or an older index, back
  boathouse quota    [--json]: what is used of each quota
  boathouse uploads  list|cancel: unfinished uploads, and ending them
  boathouse key      rotate|list: the keys that sign logins
  boathouse health   whether the server on this machine is alive

  boathouse COMMAND --help    more about one of them; "boathouse serve --help" shows all settings
  boathouse --version

All but serve and health work on the data folder of a server (--config FILE, --data DIR, BOATHOUSE_DATA), also while it runs.
They exit with 0 when it is done, 1 when it cannot be done, and 2 when it is not well said.`

/** Runs the command line. @returns the exit code */
async function main(args: readonly string[]): Promise<number> {
  const { name, rest } = splitCommand(args)
  const end = rest.indexOf('--')
  const options = end < 0 ? rest : rest.slice(0, end)
  const asksHelp = options.includes('--help') || options.includes('-h')
  if (name === undefined) {
    if (asksHelp) return help(usage)
    if (options.includes('--version') || options.includes('-v')) return say(version)
    return complain('Name a command.', '')
  }
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined
  if (load === undefined) return complain(`There is no command ${JSON.stringify(name.slice(0, 80))}.`, '')
  const command = await load()
  if (asksHelp) return help(command.usage)
  try {
    return await command.run(rest)
  } catch (error) {
    return report(error, name)
  }
}

function report(error: unknown, name: string): number {
  if (error instanceof Misuse) return complain(error.message, `${name} `)
  if (error instanceof ConfigError) {
    note(error.faults.join('\n'))
    return misused
  }
  const sentence = describeFailure(error)
  if (sentence === undefined) throw error
  note(sentence)
  return failed
}

/** What a help text calls this program is typed otherwise where there is no such command. */
function help(text: string): number {
  const name = programName()
  return say(name === 'boathouse' ? text : `${text}\n\nHere boathouse stands for: ${name}`)
}

function say(text: string): number {
  process.stdout.write(`${text}\n`)
  return 0
}

function complain(text: string, command: string): number {
  note(`${text} "boathouse ${command}--help" shows what there is.`)
  return misused
}

/** Resolves when what was written has been taken: leaving the process earlier would cut it off. */
function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => stream.write('', () => resolve()))
}

// What is made here is its owner's alone: hashes of passwords, keys, images. Workers inherit it.
process.umask(0o077)
// Whoever reads the answer may have read enough, as head does.
process.stdout.on('error', () => {
  if (!hasLostTerminal()) process.exit(failed)
})
const code = await main(process.argv.slice(2))
if (!hasLostTerminal()) await Promise.all([flushed(process.stdout), flushed(process.stderr)])
process.exit(code)
