/*
 * A disk that fails and loses, under any program, static ones too: the kernel stops the program at each write and sync (seccomp user
 * notification), and this one looks at what it is about to do.
 *
 *   faulty_disk CONTROL PART PROGRAM [ARGUMENT..]
 *
 * becomes PROGRAM, under the same process id, watched by a child. What it does to files that have PART in their path counts:
 *
 *   CONTROL/fail exists   every fdatasync and fsync fails with EIO, and when the program has ended its unsynced writes are lost
 *                         the first failure notes its time in CONTROL/failed, nanoseconds since 1970
 *   CONTROL/cut exists    the power is cut: the program is killed, and its unsynced writes are lost; then CONTROL/cut is removed
 *
 * Lost means: of each 512-byte sector written since the last sync of its file a coin decides whether it stands or is as before. The
 * number in CONTROL/cut seeds the coin. Files are made, removed and renamed for good at once, as on a journalling file system.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512 };

/* One write that no sync has followed yet. */
struct pending {
    struct pending *older;
    char path[512];
    off_t at;
    size_t bytes;
    char before[];
};

static struct pending *newest;
static char fail_path[512], failed_path[512], cut_path[512];
static const char *part;

static void die(const char *what) {
    perror(what);
    exit(125);
}

static int path_of(pid_t pid, int fd, char *path, size_t room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
    ssize_t length = readlink(link, path, room - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

/* Where write(2) will put its bytes: at the end of a file opened for appending, at its position else. */
static off_t position(pid_t pid, int fd, const char *path) {
    char name[64], line[128];
    long long at = 0;
    unsigned long flags = 0;
    snprintf(name, sizeof name, "/proc/%d/fdinfo/%d", pid, fd);
    FILE *file = fopen(name, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "pos: %lld", &at);
        sscanf(line, "flags: %lo", &flags);
    }
    fclose(file);
    if (flags & O_APPEND) {
        int own = open(path, O_RDONLY);
        at = own < 0 ? 0 : lseek(own, 0, SEEK_END);
        close(own);
    }
    return at;
}

static void remember(const char *path, off_t at, size_t bytes) {
    struct pending *write = calloc(1, sizeof *write + bytes);
    if (!write) die("calloc");
    snprintf(write->path, sizeof write->path, "%s", path);
    write->at = at;
    write->bytes = bytes;
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        /* Beyond the end of the file it was nothing: zeros stand for that. */
        if (pread(fd, write->before, bytes, at) < 0) die("pread");
        close(fd);
    }
    write->older = newest;
    newest = write;
}

static void synced(const char *path) {
    for (struct pending **link = &newest; *link;) {
        struct pending *write = *link;
        if (strcmp(write->path, path) == 0) {
            *link = write->older;
            free(write);
        } else {
            link = &write->older;
        }
    }
}

static uint64_t coin_state;

static int coin(void) {
    coin_state ^= coin_state << 13;
    coin_state ^= coin_state >> 7;
    coin_state ^= coin_state << 17;
    return coin_state >> 40 & 1;
}

/* Takes back what no sync has followed, as far as the coin says so: the newest first. */
static void lose(void) {
    unsigned long long seed = 1;
    FILE *file = fopen(cut_path, "r");
    if (file && fscanf(file, "%llu", &seed) != 1) seed = 1;
    if (file) fclose(file);
    coin_state = (seed + 1) * 0x9E3779B97F4A7C15ull;
    unsigned long lost = 0, sectors = 0;
    for (struct pending *write = newest; write; write = write->older) {
        int fd = open(write->path, O_WRONLY);
        if (fd < 0) continue; /* It was removed. */
        for (size_t done = 0; done < write->bytes;) {
            size_t step = SECTOR - (write->at + done) % SECTOR;
            if (step > write->bytes - done) step = write->bytes - done;
            sectors++;
            if (coin()) {
                lost++;
                if (pwrite(fd, write->before + done, step, write->at + done) < 0) die("pwrite");
            }
            done += step;
        }
        close(fd);
    }
    fprintf(stderr, "unsynced: %lu of %lu sectors lost\n", lost, sectors);
}

static void note_failure(void) {
    struct timespec now;
    int note = open(failed_path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (note < 0) return; /* It was not the first. */
    clock_gettime(CLOCK_REALTIME, &now);
    dprintf(note, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    close(note);
}

static void cut(pid_t pid, int gone) {
    kill(pid, SIGKILL);
    struct pollfd wait = { .fd = gone, .events = POLLIN };
    while (poll(&wait, 1, -1) < 1) continue;
    lose();
    unlink(cut_path);
    _exit(0);
}

static void watch(pid_t pid, int notices) {
    int gone = syscall(SYS_pidfd_open, pid, 0);
    if (gone < 0) die("pidfd_open");
    for (;;) {
        struct pollfd waits[2] = { { .fd = notices, .events = POLLIN }, { .fd = gone, .events = POLLIN } };
        poll(waits, 2, 10);
        if (access(cut_path, F_OK) == 0) cut(pid, gone);
        if (waits[1].revents) {
            if (access(fail_path, F_OK) == 0) {
                lose();
                unlink(fail_path);
            }
            _exit(0);
        }
        if (!(waits[0].revents & POLLIN)) continue;
        struct seccomp_notif notice = { 0 };
        if (ioctl(notices, SECCOMP_IOCTL_NOTIF_RECV, &notice) < 0) continue;
        struct seccomp_notif_resp answer = { .id = notice.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
        char path[512];
        int fd = notice.data.args[0];
        if (path_of(pid, fd, path, sizeof path)) {
            switch (notice.data.nr) {
            case SYS_pwrite64: remember(path, notice.data.args[3], notice.data.args[2]); break;
            case SYS_write: remember(path, position(pid, fd, path), notice.data.args[2]); break;
            default:
                if (access(fail_path, F_OK) == 0) {
                    note_failure();
                    answer.flags = 0;
                    answer.error = -EIO;
                } else {
                    synced(path);
                }
            }
        }
        ioctl(notices, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}

int main(int count, char **arguments) {
    if (count < 4) return 125;
    snprintf(fail_path, sizeof fail_path, "%s/fail", arguments[1]);
    snprintf(failed_path, sizeof failed_path, "%s/failed", arguments[1]);
    snprintf(cut_path, sizeof cut_path, "%s/cut", arguments[1]);
    part = arguments[2];
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = { .len = sizeof rules / sizeof *rules, .filter = rules };
    pid_t pid = getpid();
    /* The watcher is not under the filter: it is made before, and takes the descriptor of the notices afterwards. */
    int told[2], taken[2];
    if (pipe(told) < 0 || pipe(taken) < 0) die("pipe");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        int theirs;
        close(told[1]);
        close(taken[0]);
        if (read(told[0], &theirs, sizeof theirs) != sizeof theirs) _exit(125);
        int owner = syscall(SYS_pidfd_open, pid, 0);
        int notices = syscall(SYS_pidfd_getfd, owner, theirs, 0);
        if (notices < 0) die("pidfd_getfd");
        close(taken[1]);
        watch(pid, notices);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) die("no_new_privs");
    int notices = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (notices < 0) die("seccomp");
    /* A write would be stopped before anybody watches; the filter lets writev pass. The watcher says by closing that it is there. */
    struct iovec number = { &notices, sizeof notices };
    char none;
    close(taken[1]);
    if (writev(told[1], &number, 1) < 0 || read(taken[0], &none, 1) != 0) die("the watcher");
    fcntl(notices, F_SETFD, FD_CLOEXEC);
    fcntl(told[0], F_SETFD, FD_CLOEXEC);
    fcntl(told[1], F_SETFD, FD_CLOEXEC);
    fcntl(taken[0], F_SETFD, FD_CLOEXEC);
    execv(arguments[3], arguments + 3);
    die(arguments[3]);
}
