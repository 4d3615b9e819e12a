import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import bcrypt from 'bcryptjs'
import type { Test } from 'tap'
import { dataPaths, takeDataFolder } from '../storage/data-folder.js'
import { KeyStore } from '../storage/key-store.js'
import { scratchDir, within } from './harness.js'
import { failOnWarnings } from './warnings.js'

const mainScript = fileURLToPath(new URL('../src/main.js', import.meta.url))

/** The command line of `boathouse` with these words. */
export function commandLine(...args: string[]): string[] {
  return [process.execPath, mainScript, ...args]
}

/** A wrapper that leaves only this of the environment: the test runner adds to what it starts. */
function withEnvironment(extra: Record<string, string> = {}): string[] {
  const kept = ['PATH', 'HOME', 'TMPDIR', 'LANG'].flatMap((name) => {
    const value = process.env[name]
    return value === undefined ? [] : [`${name}=${value}`]
  })
  return ['env', '-i', ...kept, ...Object.entries(extra).map(([name, value]) => `${name}=${value}`)]
}

/** What a command said, and how it ended. */
export interface Run {
  code: number | null
  stdout: string
  stderr: string
}

/** A command under way. */
export interface RunningCommand {
  child: ChildProcess
  /** What came on standard output and standard error so far. */
  output: () => string
  /** Types or sends something. */
  write: (text: string) => void
  /** Closes standard input. */
  end: () => void
  done: Promise<Run>
}

export interface CommandOptions {
  env?: Record<string, string>
  /** Run as this user; the tests must be root's then. */
  uid?: number
  /** What to run in the command's place, which may begin with a wrapper. */
  command?: string[]
}

/** Starts `boathouse` with these words; standard input stays open. */
export function startCommand(args: string[], options: CommandOptions = {}): RunningCommand {
  const [program = '', ...words] = [
    ...withEnvironment(options.env),
    ...(options.command ?? commandLine(...args)),
  ]
  const { uid } = options
  const child = spawn(program, words, {
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  })
  let stdout = ''
  let stderr = ''
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk
  })
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk
  })
  // A command may end before it has read what it was sent.
  child.stdin?.on('error', () => undefined)
  const timer = setTimeout(() => child.kill('SIGKILL'), 120_000)
  const done = new Promise<Run>((resolve) => {
    child.on('close', (code) => {
      clearTimeout(timer)
      failOnWarnings(stderr)
      resolve({ code, stdout, stderr })
    })
  })
  return {
    child,
    output: () => stdout + stderr,
    write: (text) => child.stdin?.write(text),
    end: () => child.stdin?.end(),
    done: within(130_000, args.join(' '), done),
  }
}

/** Runs `boathouse` on a data folder, with this text on standard input. */
export function runCommand(
  data: string,
  args: string[],
  input = '',
  options: CommandOptions = {},
): Promise<Run> {
  const running = startCommand(args, { ...options, env: { BOATHOUSE_DATA: data, ...options.env } })
  running.write(input)
  running.end()
  return running.done
}

/** What runs commands on a data folder: words with blanks between them, and the text of standard input. */
export type Runner = (words: string, input?: string, options?: CommandOptions) => Promise<Run>

export function commandsOn(data: string): Runner {
  return (words, input, options) => runCommand(data, words.split(' '), input, options)
}

let folders = 0

/** A data folder of the test's own, as a server leaves it, and what runs commands on it. */
export async function offline(t: Test): Promise<{ data: string; run: Runner }> {
  const data = join(scratchDir(t), `offline-${folders++}`)
  const folder = await takeDataFolder(data)
  await new KeyStore(dataPaths(data).keys).prepare(Date.now())
  folder.release()
  return { data, run: commandsOn(data) }
}

/** Who says what is wrong: a test, or one that throws before the first test. */
export type Judge = { equal(found: unknown, wanted: unknown, what: string): unknown }

/** Asserts that a command did what it was told, and gives what it said. */
export async function did(t: Judge, running: Promise<Run>): Promise<Run> {
  const run = await running
  t.equal(run.code, 0, (run.stdout + run.stderr).slice(0, 300))
  return run
}

/** Asserts that a command refused with this exit code and these words in one line, and said nothing else. */
export async function refused(t: Test, running: Promise<Run>, code: 1 | 2, words: RegExp): Promise<void> {
  const run = await running
  t.match(run, { code, stdout: '', stderr: words })
  t.match(run.stderr, /^[A-Z][^\n]+\.\n$/, 'in one line')
  t.notMatch(run.stderr, /\.js:\d+|node:internal/, 'without a stack')
}

/** Adds users with one command; the password of each is `secret`. */
export async function addUsers(t: Judge, run: Runner, ...names: string[]): Promise<void> {
  const hash = bcrypt.hashSync('secret', 4)
  await did(t, run('user import -', names.map((name) => `${name}:${hash}\n`).join('')))
}
